"""What the processes of one host share to live and to talk. A leaf package.

Imports the standard library, posix_ipc, msgpack, setproctitle and (in `frontend` only)
gunicorn; nothing of ours. Nothing here knows what a model is.
"""

__version__ = "0.1.0"
