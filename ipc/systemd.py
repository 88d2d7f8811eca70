"""What we say to systemd and journald, and what systemd hands us: a few socket lines.

Used by the supervisors (`notify`, `listen_fds`) and by ipc.journal (`send_native`).
Outside systemd everything here is silent.

    NOTIFY_SOCKET   datagram "READY=1\nSTATUS=serving"; '@' first = abstract name
    LISTEN_FDS      sockets from fd 3 on, for the process LISTEN_PID
    journal         datagram "KEY=value\n", or "KEY\n" u64-le length, bytes, "\n" when
                    the value has a newline; too big → the same bytes in a sealed memfd

Invariant: nothing here raises because the service manager is absent or busy.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Mapping, MutableMapping
from pathlib import Path

JOURNAL_SOCKET = Path("/run/systemd/journal/socket")
_FIRST_FD = 3
_SEND_LIMIT_S = 0.1
"""A journald that doesn't read may cost a loop this much for one record, no more."""


def notify(**state: object) -> bool:
    """Tell the service manager, as in notify(READY=1, STATUS="serving")."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    name = "\0" + address[1:] if address.startswith("@") else address
    lines = [f"{key}={_one_line(value)}" for key, value in state.items()]
    return _send_datagram("\n".join(lines).encode("utf-8", "replace"), name)


def watchdog_s() -> float | None:
    """How often the service manager wants WATCHDOG=1 from this process, if at all."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID") or str(os.getpid())
    if not microseconds.isdecimal() or pid != str(os.getpid()):
        return None
    return int(microseconds) / 1e6 or None


def listen_fds(
    environ: MutableMapping[str, str] = os.environ, *, first_fd: int = _FIRST_FD
) -> dict[str, socket.socket]:
    """Listening sockets from the service manager, by FileDescriptorName.

    A second one of the same name is "name#2". The variables are removed, so that no
    child takes the sockets for its own, and the fds are closed on exec.
    """
    pid, count, names = [
        environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    ]
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    labels = names.split(":") if names else []
    sockets: dict[str, socket.socket] = {}
    for index in range(int(count)):
        label = labels[index] if index < len(labels) else "unknown"
        os.set_inheritable(first_fd + index, False)
        sockets[_unused(label, sockets)] = socket.socket(fileno=first_fd + index)
    return sockets


def send_native(fields: Mapping[str, object], path: Path = JOURNAL_SOCKET) -> bool:
    """One record to journald; False when it could not be handed over."""
    return _send_datagram(encode_native(fields), str(path), by_memfd=True)


def encode_native(fields: Mapping[str, object]) -> bytes:
    """The record in journald's own protocol."""
    record = bytearray()
    for key, value in fields.items():
        data = str(value).encode("utf-8", "backslashreplace")
        if b"\n" in data:
            record += key.encode() + b"\n" + struct.pack("<Q", len(data)) + data
        else:
            record += key.encode() + b"=" + data
        record += b"\n"
    return bytes(record)


def _send_datagram(data: bytes, name: str, *, by_memfd: bool = False) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(_SEND_LIMIT_S)
        try:
            sock.connect(name)
            sock.send(data)
        except OSError as error:
            too_big = error.errno in (errno.EMSGSIZE, errno.ENOBUFS)
            return too_big and by_memfd and _send_memfd(sock, data)
    return True


def _send_memfd(sock: socket.socket, data: bytes) -> bool:
    """journald reads a record of any size from a memfd that can't change any more."""
    flags = os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC
    fd = os.memfd_create("journal", flags)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals | fcntl.F_SEAL_SEAL)
        rights = array.array("i", [fd]).tobytes()
        sock.sendmsg([], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _one_line(value: object) -> str:
    return str(value).replace("\n", " ")


def _unused(label: str, taken: Mapping[str, object]) -> str:
    names = [label, *[f"{label}#{number}" for number in range(2, len(taken) + 2)]]
    return next(name for name in names if name not in taken)
