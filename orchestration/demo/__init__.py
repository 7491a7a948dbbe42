"""The demo: stand-ins for a retailer's source systems, filled with real data that pip installs.

Only the command line and tests import it: Watershed itself knows sources by URL and no other way.
"""
