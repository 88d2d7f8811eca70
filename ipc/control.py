"""control.sock: how operators, workers and metrics processes talk to a supervisor.

    ControlServer            in the supervisor's loop      ipc.controlserver
    ControlClient            in a worker's loop            ipc.controlclient
    call, follow             in a command line             ipc.controlcall

Requests and answers are drawn in `ipc.controlwire`, frames in `ipc.frames`. Importing
this costs a command line no event loop.
"""

from ipc.controlcall import call, follow
from ipc.controlclient import ControlClient
from ipc.controlserver import BACKLOG_BYTES, ControlServer, Handler, Topics
from ipc.controlwire import ControlClosed
from ipc.frames import MAX_FRAME_BYTES, FrameError

__all__ = [
    "BACKLOG_BYTES",
    "MAX_FRAME_BYTES",
    "ControlClient",
    "ControlClosed",
    "ControlServer",
    "FrameError",
    "Handler",
    "Topics",
    "call",
    "follow",
]
