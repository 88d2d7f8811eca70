"""Finding the daemons of this host and asking them, over their control sockets only.

Used by cortexctl: nothing here needs HTTP, so it works while the front ends are dead.
A socket that nobody serves, one that may not be opened and one whose owner doesn't
answer are three different things to an operator, and get three different messages.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cortexd.ctl.exits import CommandError, Exit
from ipc import controlcall, paths
from ipc.controlwire import ControlClosed

Facts = dict[str, Any]
DAEMONS = ("neurond", "cortexd")
REPLY_TIMEOUT_S = 2.0
_STATES = {"R": "running", "S": "asleep", "D": "uninterruptible", "T": "stopped"}


def ask(
    path: Path,
    op: str,
    args: Facts | None = None,
    *,
    timeout_s: float = REPLY_TIMEOUT_S,
) -> Facts:
    """One request to the daemon behind `path`. Raises CommandError or ServiceError."""
    try:
        return dict(controlcall.call(path, op, args or {}, timeout_s=timeout_s))
    except (OSError, ControlClosed) as error:
        raise trouble(path, error) from error


def statuses(chosen: Path | None) -> dict[str, Facts]:
    """The facts document of every daemon that answers: "node" and/or "gateway"."""
    if chosen:
        facts = ask(chosen, "status")
        return {"gateway" if "gateway" in facts else "node": facts}
    found = {}
    for kind, daemon in zip(("node", "gateway"), DAEMONS, strict=True):
        if path := socket_of(daemon):
            found[kind] = ask(path, "status")
    if not found:
        raise nobody(DAEMONS)
    return found


def node_socket(chosen: Path | None) -> Path:
    """The socket for verbs that only a node has."""
    if path := chosen or socket_of("neurond"):
        return path
    raise nobody(("neurond",))


def event_socket(chosen: Path | None) -> Path:
    """The node's events where there is a node, else the gateway's."""
    if path := chosen or socket_of("neurond") or socket_of("cortexd"):
        return path
    raise nobody(DAEMONS)


def socket_of(daemon: str) -> Path | None:
    """The first socket of the search list that somebody serves or guards."""
    for path in paths.control_sockets(daemon):
        try:
            with _connected(path):
                return path
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            continue
        except OSError as error:
            raise trouble(path, error) from error
    return None


def nobody(daemons: Sequence[str]) -> CommandError:
    """No socket of these daemons has an owner."""
    places = [str(p) for daemon in daemons for p in paths.control_sockets(daemon)]
    looked = ", ".join(dict.fromkeys(places))
    return CommandError(
        f"no daemon answers: {' and '.join(daemons)} not running (looked at {looked})",
        Exit.UNREACHABLE,
        next_command=f"systemctl start {daemons[0]}, or cortex run",
    )


def trouble(path: Path, error: Exception) -> CommandError:
    """What an operator can make of a failed conversation."""
    daemon = _daemon_of(path)
    if isinstance(error, PermissionError):
        return _not_allowed(path)
    if isinstance(error, TimeoutError | BlockingIOError):
        return CommandError(
            f"{daemon} gave no reply in {REPLY_TIMEOUT_S:.0f} s ({_owner(path)})",
            Exit.UNREACHABLE,
            next_command=f"systemctl restart {daemon}",
        )
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return CommandError(
            f"no daemon answers at {path}",
            Exit.UNREACHABLE,
            next_command=f"systemctl start {daemon}, or cortex run",
        )
    return CommandError(
        f"{daemon} closed the connection: {error}",
        Exit.UNREACHABLE,
        next_command="cortexctl status",
    )


def _daemon_of(path: Path) -> str:
    return next((name for name in DAEMONS if name in path.parts), "the daemon")


def _not_allowed(path: Path) -> CommandError:
    import getpass
    import grp

    existing = next((p for p in (path, *path.parents) if os.access(p, os.F_OK)), path)
    group = grp.getgrgid(existing.stat().st_gid).gr_name
    return CommandError(
        f"{path} may be used by group {group} only, and you are not in it",
        Exit.NOT_ALLOWED,
        next_command=f"sudo usermod -aG {group} {getpass.getuser()}",
    )


def _connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(REPLY_TIMEOUT_S)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def _owner(path: Path) -> str:
    """ "pid 812, asleep": the process that listens, as the kernel knows it."""
    try:
        with _connected(path) as connection:
            size = struct.calcsize("3i")
            found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        pid = struct.unpack("3i", found)[0]
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "its owner can't be asked"
    return f"pid {pid}, {_STATES.get(state, state)}"
