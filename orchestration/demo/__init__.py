"""The demo: stand-ins for source systems, a retailer's with real data that pip installs, and simulated card payments.

Only the command line and tests import it: Watershed itself knows sources by URL and no other way.
"""
