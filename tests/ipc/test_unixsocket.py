"""Socket files: their mode, whose they are, and who may replace them."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import stat
import time
from pathlib import Path

import pytest

from ipc.unixsocket import bind_unix, connect_unix, try_connect_unix
from tests.ipc.processkit import finish, fork, open_fds

_STREAM = socket.SOCK_STREAM
_KINDS = [socket.SOCK_STREAM, socket.SOCK_SEQPACKET]


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("mode", [0o660, 0o600, 0o666])
def test_a_socket_file_has_the_mode_that_was_asked_for(
    tmp_path: Path, kind: socket.SocketKind, mode: int
) -> None:
    path = tmp_path / "a.sock"
    for umask in (0o077, 0o000):
        before = os.umask(umask)
        listener = bind_unix(path, kind, mode)
        os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert not listener.getblocking()
        assert not listener.get_inheritable()
        with connect_unix(path, kind, timeout_s=1) as sock:
            assert sock.getblocking()
            assert sock.getpeername() == str(path)
        listener.close()


def test_a_stale_socket_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    bind_unix(path, _STREAM, 0o660).close()
    with pytest.raises(ConnectionRefusedError):
        connect_unix(path, _STREAM, timeout_s=1)
    with (
        bind_unix(path, _STREAM, 0o660),
        connect_unix(path, _STREAM, timeout_s=1),
    ):
        pass


@pytest.mark.parametrize("mine", _KINDS)
@pytest.mark.parametrize("theirs", _KINDS)
def test_a_socket_that_somebody_listens_on_is_left_alone(
    tmp_path: Path, mine: socket.SocketKind, theirs: socket.SocketKind
) -> None:
    path = tmp_path / "a.sock"
    with bind_unix(path, theirs, 0o660):
        inode = path.stat().st_ino
        with pytest.raises(OSError, match="somebody listens") as caught:
            bind_unix(path, mine, 0o660)
        assert caught.value.errno == errno.EADDRINUSE
        assert path.stat().st_ino == inode
        connect_unix(path, theirs, timeout_s=1).close()


def test_a_listener_whose_queue_is_full_still_counts_as_listening(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.sock"
    with bind_unix(path, _STREAM, 0o660):
        waiting = []
        while (sock := try_connect_unix(path, _STREAM)) is not None:
            waiting.append(sock)
        with pytest.raises(OSError, match="somebody listens"):
            bind_unix(path, _STREAM, 0o660)
        began_s = time.monotonic()
        with pytest.raises(TimeoutError):
            connect_unix(path, _STREAM, timeout_s=0.1)
        assert 0.1 <= time.monotonic() - began_s < 2
        for sock in waiting:
            sock.close()


def test_nothing_but_a_socket_is_ever_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "folder").mkdir()
    for name in ("file", "link", "folder"):
        with pytest.raises(FileExistsError):
            bind_unix(tmp_path / name, _STREAM, 0o660)
    assert (tmp_path / "file").read_text() == "precious"
    assert (tmp_path / "link").is_symlink()


def test_a_path_longer_than_a_socket_address_works(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30) / ("longer" * 30)
    folder.mkdir(parents=True)
    path = folder / "control.sock"
    bind_unix(path, _STREAM, 0o660).close()
    with bind_unix(path, _STREAM, 0o660) as listener:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with connect_unix(path, _STREAM, timeout_s=1) as sock:
            sock.send(b"hello")
            accepted, _ = listener.accept()
            assert accepted.recv(10) == b"hello"
            accepted.close()


def test_where_there_is_nothing_the_reason_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        connect_unix(tmp_path / "a.sock", _STREAM, timeout_s=1)
    with pytest.raises(FileNotFoundError):
        connect_unix(tmp_path / "no" / "a.sock", _STREAM, timeout_s=1)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        connect_unix(tmp_path / "file" / "a.sock", _STREAM, timeout_s=1)
    with pytest.raises(FileNotFoundError):
        bind_unix(tmp_path / "no" / "a.sock", _STREAM, 0o660)


def test_failures_leave_no_descriptor_open(tmp_path: Path) -> None:
    before = open_fds()
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "no" / "a", tmp_path / ("x" * 300)):
        with pytest.raises(OSError):
            bind_unix(path, _STREAM, 0o660)
        with pytest.raises(OSError):
            connect_unix(path, _STREAM, timeout_s=1)
    assert open_fds() == before


def test_of_many_that_start_at_once_over_a_stale_file_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    for _ in range(10):
        bind_unix(path, _STREAM, 0o660).close()
        start, go = os.pipe()
        told, tell = os.pipe()

        def contend(start: int = start, go: int = go, tell: int = tell) -> None:
            os.close(go)
            os.read(start, 1)
            try:
                _listener = bind_unix(path, _STREAM, 0o660)
                os.write(tell, b"w")
            except OSError as error:
                os.write(tell, b"l" if error.errno == errno.EADDRINUSE else b"?")
            signal.pause()

        pids = [fork(contend) for _ in range(6)]
        for fd in (start, go, tell):
            os.close(fd)
        verdicts = b""
        while len(verdicts) < 6:
            assert select.select([told], [], [], 10)[0]
            verdicts += os.read(told, 6)
        assert sorted(verdicts) == sorted(b"wlllll")
        connect_unix(path, _STREAM, timeout_s=1).close()  # the winner can be reached
        os.close(told)
        for pid in pids:
            finish(pid)
