"""Who the kernel says is at the other end."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipc.acceptor import Acceptor
from ipc.peer import Peer, peer_of
from ipc.unixsocket import bind_unix, connect_unix
from tests.ipc.processkit import finish, fork, in_fork, run, until

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root changes its groups")
_KINDS = [socket.SOCK_STREAM, socket.SOCK_SEQPACKET]


@pytest.mark.parametrize("kind", _KINDS)
def test_the_peer_is_the_process_that_connected(
    tmp_path: Path, kind: socket.SocketKind
) -> None:
    with bind_unix(tmp_path / "a.sock", kind, 0o660) as listener:
        listener.setblocking(True)

        def client() -> None:
            with connect_unix(tmp_path / "a.sock", kind, timeout_s=5) as sock:
                sock.recv(1)

        pid = fork(client)
        accepted, _ = listener.accept()
        with accepted:
            expected = Peer(pid, os.geteuid(), os.getegid(), tuple(os.getgroups()))
            assert peer_of(accepted) == expected
        finish(pid)


def _groups_seen(groups: list[int]) -> Any:
    """What is seen of a process that has these groups."""

    def client() -> list[int]:
        os.setgroups(groups)
        one, other = socket.socketpair()
        return list(peer_of(one).groups) if peer_of(other).pid == os.getpid() else []

    return in_fork(client)


@as_root
@pytest.mark.parametrize("count", [0, 1, 64, 65, 257, 3000])
def test_all_groups_are_seen_however_many_there_are(count: int) -> None:
    groups = list(range(5000, 5000 + count))
    assert _groups_seen(groups) == groups


def test_what_is_no_unix_socket_has_no_peer() -> None:
    with socket.socket(socket.AF_INET) as sock, pytest.raises(OSError):
        peer_of(sock)


# -- accepting


class _Counted(socket.socket):
    """A listener that knows how often it was asked."""

    num_accepts = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.num_accepts += 1
        return super().accept()


def _accepting(tmp_path: Path, work: Callable[..., Any]) -> Any:
    """Run `work(path, accepted, acceptor)` beside an acceptor."""

    async def main() -> Any:
        path = tmp_path / "a.sock"
        listener = _Counted(fileno=bind_unix(path, socket.SOCK_STREAM, 0o660).detach())
        accepted: list[tuple[socket.socket, Peer]] = []
        acceptor = Acceptor(listener, lambda *found: accepted.append(found))
        acceptor.start(asyncio.get_running_loop())
        try:
            return await work(path, accepted, acceptor)
        finally:
            acceptor.close()
            acceptor.close()
            for sock, _ in accepted:
                sock.close()

    return run(main())


def test_every_connection_is_accepted_with_its_peer(tmp_path: Path) -> None:
    async def work(path: Path, accepted: list[Any], _acceptor: Acceptor) -> None:
        clients = [
            connect_unix(path, socket.SOCK_STREAM, timeout_s=1) for _ in "x" * 90
        ]
        await until(lambda: len(accepted) == len(clients))
        assert {peer.pid for _, peer in accepted} == {os.getpid()}
        assert not any(sock.getblocking() for sock, _ in accepted)
        for client in clients:
            client.close()

    _accepting(tmp_path, work)


def test_without_descriptors_the_loop_neither_stops_nor_spins(tmp_path: Path) -> None:
    async def work(path: Path, accepted: list[Any], acceptor: Acceptor) -> list[Any]:
        client = connect_unix(path, socket.SOCK_STREAM, timeout_s=1)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)  # the lowest number that is free
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        await asyncio.sleep(0.2)
        refused, num_accepts = len(accepted), acceptor._listener.num_accepts  # type: ignore[attr-defined]
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await until(lambda: accepted)
        client.close()
        return [refused, num_accepts]

    assert in_fork(lambda: _accepting(tmp_path, work)) == [0, 1]


def test_after_close_nobody_is_let_in(tmp_path: Path) -> None:
    async def work(path: Path, accepted: list[Any], acceptor: Acceptor) -> None:
        acceptor.close()
        with pytest.raises(ConnectionRefusedError):
            connect_unix(path, socket.SOCK_STREAM, timeout_s=1)
        assert accepted == []

    _accepting(tmp_path, work)
