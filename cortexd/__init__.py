"""The gateway daemon: one API over a fleet of nodes."""
