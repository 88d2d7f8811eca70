"""The HTTP front end of a node: Falcon under gunicorn, M workers."""
