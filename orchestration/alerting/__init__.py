"""Alerts: what is wrong now, told once, to those who can mend it."""
