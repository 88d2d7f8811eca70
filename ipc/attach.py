"""attach.sock: how a front-end worker gets at the devices.

    AttachClient                          AttachServer, WorkerLink
    worker  ── Hello ──────────────────▶  supervisor
            ◀── Welcome | Refused ──────
            ◀── Pair + 5 fds, Down ─────  for each life of each device
            ── Quarantine ─────────────▶  a request that killed one, alone
            EOF, either way: the other process is gone

The two sides live in modules of their own and share `ipc.attachwire`; here are the
names that the daemons use.
"""

from ipc.attachclient import AttachClient
from ipc.attachserver import AttachServer, WorkerLink
from ipc.attachwire import PROTOCOL

__all__ = ["PROTOCOL", "AttachClient", "AttachServer", "WorkerLink"]
