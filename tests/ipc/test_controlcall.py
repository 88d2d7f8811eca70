"""The blocking client: one question or a stream of events, each wait with its end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ipc.control import ControlClosed, ControlServer, call, follow
from ipc.errors import CapacityError, ClientError, error_for
from ipc.frames import pack_frame
from ipc.peer import Peer
from ipc.unixsocket import bind_unix, connect_unix
from tests.ipc.processkit import finish, fork, in_fork, open_fds, run, wait_for

Facts = dict[str, Any]
_KIND = socket.SOCK_STREAM


def _anyone(_peer: Peer) -> bool:
    return True


def _daemon(path: Path, *, authorize: Callable[[Peer], bool] = _anyone) -> None:
    """Serve for the life of this process; "tick" publishes an event."""

    async def main() -> None:
        async def echo(args: Facts, _peer: Peer) -> Facts:
            return args

        async def busy(_args: Facts, _peer: Peer) -> Facts:
            raise error_for("queue_full", "no seat", fields={"seats": 4})

        async def never(_args: Facts, _peer: Peer) -> Facts:
            await asyncio.sleep(60)
            return {}

        async def tick(args: Facts, _peer: Peer) -> Facts:
            server.publish("events", args)
            return {}

        server = ControlServer(
            bind_unix(path, _KIND, 0o660),
            {"echo": echo, "busy": busy, "never": never, "tick": tick},
            authorize=authorize,
            topics={"state": lambda: {"v": 1}, "events": None},
        )
        server.start(asyncio.get_running_loop())
        await asyncio.sleep(30)

    run(main())


def _reachable(path: Path) -> bool:
    try:
        connect_unix(path, _KIND, timeout_s=1).close()
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Starts a daemon in a process of its own."""
    pids = []

    def start(**more: Any) -> Path:
        path = tmp_path / "control.sock"
        pids.append(fork(lambda: _daemon(path, **more)))
        wait_for(lambda: _reachable(path))
        return path

    start.pids = pids  # type: ignore[attr-defined]
    yield start
    for pid in pids:
        finish(pid)


def test_a_question_is_answered(serve: Callable[..., Path]) -> None:
    path = serve()
    before = open_fds()
    assert call(path, "echo", {"a": [1, "ü"]}, timeout_s=5) == {"a": [1, "ü"]}
    assert call(str(path), "echo", timeout_s=5) == {}
    big = {"data": bytes(5 << 20)}
    assert call(path, "echo", big, timeout_s=5) == big
    assert open_fds() == before


def test_a_refusal_is_the_error_that_was_raised(serve: Callable[..., Path]) -> None:
    path = serve()
    with pytest.raises(CapacityError) as caught:
        call(path, "busy", timeout_s=5)
    assert (caught.value.code, caught.value.fields) == ("queue_full", {"seats": 4})
    with pytest.raises(ClientError, match="'fly'"):
        call(path, "fly", timeout_s=5)


def test_who_may_not_control_is_told_so(serve: Callable[..., Path]) -> None:
    path = serve(authorize=lambda peer: peer.uid != os.geteuid())
    with pytest.raises(ClientError) as caught:
        call(path, "echo", timeout_s=5)
    assert caught.value.code == "insufficient_permissions"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes its groups")
def test_a_group_can_be_what_decides(serve: Callable[..., Path]) -> None:
    path = serve(authorize=lambda peer: 4242 in peer.groups)

    def member(groups: list[int]) -> str:
        os.setgroups(groups)
        try:
            return str(call(path, "echo", {"a": 1}, timeout_s=5))
        except ClientError as error:
            return error.code

    assert in_fork(lambda: member([4241, 4242])) == "{'a': 1}"
    assert in_fork(lambda: member([4241])) == "insufficient_permissions"


def test_a_question_takes_no_longer_than_its_timeout(
    serve: Callable[..., Path],
) -> None:
    path = serve()
    before = open_fds()
    began_s = time.monotonic()
    with pytest.raises(TimeoutError):
        call(path, "never", timeout_s=0.1)
    assert 0.1 <= time.monotonic() - began_s < 2
    assert open_fds() == before


def test_a_daemon_that_is_stopped_costs_the_timeout(
    serve: Callable[..., Path],
) -> None:
    path = serve()
    os.kill(serve.pids[0], signal.SIGSTOP)  # type: ignore[attr-defined]
    with pytest.raises(TimeoutError):
        call(path, "echo", timeout_s=0.1)
    with pytest.raises(TimeoutError):
        call(path, "echo", {"data": bytes(8 << 20)}, timeout_s=0.1)


def test_a_daemon_that_dies_meanwhile_has_closed(serve: Callable[..., Path]) -> None:
    path = serve()
    events = follow(path, ["state"], timeout_s=5)
    assert next(events) == ("state", {"v": 1})
    os.kill(serve.pids[0], signal.SIGKILL)  # type: ignore[attr-defined]
    with pytest.raises(ControlClosed):
        next(events)


def test_without_a_daemon_the_reason_is_told(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    for ask in (
        lambda: call(path, "echo", timeout_s=1),
        lambda: next(follow(path, ["state"], timeout_s=1)),
    ):
        path.unlink(missing_ok=True)
        with pytest.raises(FileNotFoundError):
            ask()
        bind_unix(path, _KIND, 0o660).close()
        with pytest.raises(ConnectionRefusedError):
            ask()


def test_following_gives_current_values_and_then_events(
    serve: Callable[..., Path],
) -> None:
    path = serve()
    before = open_fds()
    events = follow(path, ["events", "state"], timeout_s=5)
    assert next(events) == ("state", {"v": 1})
    for number in range(3):
        call(path, "tick", {"id": number}, timeout_s=5)
    found = [next(events) for _ in range(3)]
    assert found == [("events", {"id": number}) for number in range(3)]
    events.close()  # type: ignore[attr-defined]
    assert open_fds() == before


def test_a_silence_longer_than_allowed_ends_the_following(
    serve: Callable[..., Path],
) -> None:
    events = follow(serve(), ["state"], timeout_s=0.1)
    next(events)
    with pytest.raises(TimeoutError):
        next(events)


def test_following_without_a_limit_waits_for_the_next_event(
    serve: Callable[..., Path],
) -> None:
    path = serve()
    events = follow(path, ["events", "state"], timeout_s=None)
    next(events)
    pid = fork(lambda: call(path, "tick", {"id": 1}, timeout_s=5))
    assert next(events) == ("events", {"id": 1})
    os.waitpid(pid, 0)


def test_an_unknown_topic_is_refused(serve: Callable[..., Path]) -> None:
    with pytest.raises(ClientError, match="gossip"):
        next(follow(serve(), ["gossip"], timeout_s=5))


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\xff\xff\xff\xff",
        pack_frame({"id": 1, "ok": {}})[:-1],
        pack_frame({"id": 1}),
        pack_frame({"id": 1, "error": "x"}),
    ],
)
def test_a_daemon_that_talks_nonsense_or_leaves_has_closed(
    tmp_path: Path, said: bytes
) -> None:
    path = tmp_path / "control.sock"
    with bind_unix(path, _KIND, 0o660) as listener:
        listener.setblocking(True)

        def daemon() -> None:
            for _ in range(2):
                sock, _address = listener.accept()
                sock.recv(10)  # not all of it: the close is a reset
                sock.sendall(said)
                sock.close()

        pid = fork(daemon)
        with pytest.raises(ControlClosed):
            call(path, "echo", timeout_s=5)
        with pytest.raises(ControlClosed):
            next(follow(path, ["state"], timeout_s=5))
        os.waitpid(pid, 0)


def test_importing_it_brings_no_event_loop() -> None:
    code = "import sys, ipc.control; sys.exit('asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=20).returncode == 0
