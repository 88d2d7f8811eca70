"""Unix sockets with a path: bind one, connect to one.

Used by supervisors (control.sock, attach.sock) and by everyone who calls them. A path
may be longer than the 107 bytes that the kernel's address holds: it is reached through
its folder's descriptor.

Invariant: a socket file is replaced only when nobody listens behind it, and two daemons
that start at once can't both think so; nothing but a socket is ever replaced.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BACKLOG = 128
_POLL_S = 0.01
_BIND_TIMEOUT_S = 5.0


def bind_unix(path: Path, kind: socket.SocketKind, mode: int) -> socket.socket:
    """A listening socket at `path` whose file has `mode`.

    Raises OSError naming the path: EADDRINUSE when somebody listens, FileExistsError
    when there is something else than a socket.
    """
    try:
        return _bind(path, kind, mode)
    except OSError as error:
        raise OSError(error.errno, f"{path}: {error.strerror}") from error


def _bind(path: Path, kind: socket.SocketKind, mode: int) -> socket.socket:
    with _folder(path, os.O_RDONLY) as folder:  # a lock needs more than O_PATH
        _hold(folder)
        _clear(path, folder, kind)
        listener = socket.socket(socket.AF_UNIX, kind)
        try:
            listener.bind(_address(path, folder))
            # Before listen: until then nobody can connect, whatever the umask was.
            os.chmod(path.name, mode, dir_fd=folder)
            listener.listen(_BACKLOG)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
    return listener


def connect_unix(
    path: Path, kind: socket.SocketKind, *, timeout_s: float
) -> socket.socket:
    """A connected, blocking socket. Raises OSError; TimeoutError: nobody accepts."""
    deadline_s = time.monotonic() + timeout_s
    while (sock := try_connect_unix(path, kind)) is None:
        if time.monotonic() >= deadline_s:
            raise TimeoutError(errno.ETIMEDOUT, "nobody accepts connections")
        time.sleep(_POLL_S)
    return sock


def try_connect_unix(path: Path, kind: socket.SocketKind) -> socket.socket | None:
    """As `connect_unix`, at once; None = the listener's queue is full, try again."""
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        sock.setblocking(False)  # a full queue must not hold us up
        with _folder(path, os.O_PATH) as folder:
            sock.connect(_address(path, folder))
        sock.setblocking(True)
    except BlockingIOError:
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    return sock


@contextmanager
def _folder(path: Path, access: int) -> Iterator[int]:
    fd = os.open(path.parent, access | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def _address(path: Path, folder: int) -> str:
    """The path itself where it fits: it is what `ss` and getsockname() show."""
    if len(os.fsencode(path)) < 108:
        return str(path)
    return f"/proc/self/fd/{folder}/{path.name}"


def _hold(folder: int) -> None:
    """Exclude another daemon's bind in this folder until the descriptor is closed."""
    deadline_s = time.monotonic() + _BIND_TIMEOUT_S
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline_s:
                raise
        time.sleep(_POLL_S)


def _clear(path: Path, folder: int, kind: socket.SocketKind) -> None:
    """Remove a socket file that nobody listens behind."""
    try:
        found = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(errno.EEXIST, "is not a socket", str(path))
    if _somebody_listens(path, kind):
        raise OSError(errno.EADDRINUSE, "somebody listens already", str(path))
    os.unlink(path.name, dir_fd=folder)


def _somebody_listens(path: Path, kind: socket.SocketKind) -> bool:
    try:
        sock = try_connect_unix(path, kind)
    except ConnectionRefusedError:
        return False
    except OSError as error:
        if error.errno == errno.EPROTOTYPE:
            return True  # a socket of another kind is bound there
        raise
    if sock is not None:
        sock.close()
    return True
