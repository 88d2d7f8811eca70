"""The node daemon: one per GPU host, one device process per GPU."""
