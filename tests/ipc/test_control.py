"""control.sock: every request is answered, and no client harms another."""

from __future__ import annotations

import asyncio
import os
import resource
import select
import socket
import struct
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ipc.control import (
    MAX_FRAME_BYTES,
    ControlClient,
    ControlClosed,
    ControlServer,
    Topics,
)
from ipc.errors import CapacityError, ClientError, HostError, error_for
from ipc.frames import FrameError, FrameReader, pack_frame
from ipc.peer import Peer
from ipc.unixsocket import bind_unix, connect_unix
from tests.ipc.processkit import in_fork, open_fds, run, until

Facts = dict[str, Any]
_KIND = socket.SOCK_STREAM


class Daemon:
    """A server with a few operations, and how they can be held up."""

    def __init__(self, path: Path, *, backlog_bytes: int = 1 << 20) -> None:
        self.path = path
        self.gate = asyncio.Event()
        self.running = 0
        self.most_running = 0
        self.state: Facts = {"version": 1}
        self.allowed = True
        topics: Topics = {"state": lambda: self.state, "events": None}
        self.server = ControlServer(
            bind_unix(path, _KIND, 0o660),
            {
                "echo": self._echo,
                "held": self._held,
                "fail": self._fail,
                "bug": self._bug,
                "odd": self._odd,
                "who": self._who,
                "big": self._big,
            },
            authorize=lambda _peer: self.allowed,
            topics=topics,
            backlog_bytes=backlog_bytes,
        )
        self.server.start(asyncio.get_running_loop())

    def has_connections(self, count: int) -> bool:
        return len(self.server.connections) == count

    async def _echo(self, args: Facts, _peer: Peer) -> Facts:
        return args

    async def _held(self, args: Facts, _peer: Peer) -> Facts:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await self.gate.wait()
        self.running -= 1
        return args

    async def _fail(self, _args: Facts, _peer: Peer) -> Facts:
        try:
            raise RuntimeError("no room on cpu-0")
        except RuntimeError as cause:
            raise error_for(
                "insufficient_vram",
                "no device has room",
                param="model_id",
                retry_after_s=7,
                fields={"needed_bytes": 5},
            ) from cause

    async def _bug(self, _args: Facts, _peer: Peer) -> Facts:
        raise KeyError("secret")

    async def _odd(self, _args: Facts, _peer: Peer) -> Facts:
        return {"value": object()}

    async def _who(self, _args: Facts, peer: Peer) -> Facts:
        return {"pid": peer.pid, "uid": peer.uid, "groups": list(peer.groups)}

    async def _big(self, args: Facts, _peer: Peer) -> Facts:
        return {"data": bytes(args["size"])}


def _serve(
    tmp_path: Path, work: Callable[[Daemon], Coroutine[Any, Any, None]], **more: Any
) -> None:
    async def main() -> None:
        daemon = Daemon(tmp_path / "control.sock", **more)
        try:
            await work(daemon)
        finally:
            daemon.server.close()
            await until(lambda: not daemon.server.connections)

    before = open_fds()
    run(main())
    assert open_fds() == before


async def _client(daemon: Daemon) -> ControlClient:
    client = ControlClient()
    await client.connect(daemon.path, 5)
    return client


async def _read_frames(sock: socket.socket, count: int) -> list[Facts]:
    """From a peer's bare socket."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    reader = FrameReader()
    frames: list[Facts] = []
    while len(frames) < count:
        data = await loop.sock_recv(sock, 1 << 16)
        assert data, f"closed after {frames}"
        frames += reader.feed(data)
    return frames


async def _is_closed(sock: socket.socket) -> None:
    sock.setblocking(False)
    try:
        assert await asyncio.get_running_loop().sock_recv(sock, 1) == b""
    except ConnectionResetError:
        pass
    sock.close()


def _is_hung_up(sock: socket.socket) -> bool:
    """The other side has gone, whatever is left to read."""
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))


def _raw(daemon: Daemon, data: bytes = b"") -> socket.socket:
    sock = connect_unix(daemon.path, _KIND, timeout_s=1)
    sock.sendall(data)
    return sock


# -- requests and answers


def test_an_operation_is_answered(tmp_path: Path) -> None:
    async def work(daemon: Daemon) -> None:
        client = await _client(daemon)
        args = {"text": "ü", "list": [1, None, 2.5], "map": {"a": True}}
        assert await client.request("echo", args) == args
        assert await client.request("echo") == {}
        client.close()

    _serve(tmp_path, work)


def test_an_operation_knows_who_asks(tmp_path: Path) -> None:
    async def work(daemon: Daemon) -> None:
        client = await _client(daemon)
        assert await client.request("who") == {
            "pid": os.getpid(),
            "uid": os.geteuid(),
            "groups": os.getgroups(),
        }
        client.close()

    _serve(tmp_path, work)


def test_an_error_keeps_its_class_code_fields_and_causes(tmp_path: Path) -> None:
    async def work(daemon: Daemon) -> None:
        client = await _client(daemon)
        with pytest.raises(CapacityError) as caught:
            await client.request("fail")
        error = caught.value
        assert (error.code, error.message) == (
            "insufficient_vram",
            "no device has room",
        )
        assert (error.param, error.retry_after_s) == ("model_id", 7)
        assert error.fields == {"needed_bytes": 5}
        assert error.chain == ("RuntimeError: no room on cpu-0",)
        client.close()

    _serve(tmp_path, work)


@pytest.mark.parametrize(
    ("op", "cause"),
    [("bug", "KeyError: 'secret'"), ("odd", "TypeError: can not serial")],
)
def test_a_bug_in_an_operation_is_answered_and_reported(
    tmp_path: Path, op: str, cause: str
) -> None:
    async def work(daemon: Daemon) -> None:
        reported: list[Facts] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: reported.append(context))
        client = await _client(daemon)
        with pytest.raises(HostError) as caught:
            await client.request(op)
        assert caught.value.code == "internal_error"
        assert "secret" not in caught.value.message
        assert caught.value.chain[0].startswith(cause)
        assert cause[:8] in repr(reported[0]["exception"])
        assert await client.request("echo", {"a": 1}) == {"a": 1}
        client.close()

    _serve(tmp_path, work)


def test_an_answer_larger_than_a_frame_is_an_error_and_not_a_silence(
    tmp_path: Path,
) -> None:
    async def work(daemon: Daemon) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        client = await _client(daemon)
        with pytest.raises(HostError):
            await client.request("big", {"size": MAX_FRAME_BYTES})
        with pytest.raises(FrameError):
            await client.request("echo", {"data": bytes(MAX_FRAME_BYTES)})
        nearly = await client.request("big", {"size": MAX_FRAME_BYTES - 100})
        assert len(nearly["data"]) == MAX_FRAME_BYTES - 100
        client.close()

    _serve(tmp_path, work)


def test_an_unknown_operation_is_named_in_the_error(tmp_path: Path) -> None:
    async def work(daemon: Daemon) -> None:
        client = await _client(daemon)
        with pytest.raises(ClientError, match="'fly'") as caught:
            await client.request("fly")
        assert caught.value.code == "not_found"
        client.close()

    _serve(tmp_path, work)


@pytest.mark.parametrize(
    "frame",
    [
        {"id": 5},
        {"id": 5, "op": 7},
        {"id": 5, "op": "echo", "args": [1]},
        {"id": 5, "op": "echo", "args": None},
        {"id": 5, "op": "subscribe"},
        {"id": 5, "op": "subscribe", "args": {"topics": "state"}},
        {"id": 5, "op": "subscribe", "args": {"topics": ["state", "gossip"]}},
        {"id": 5, "op": "subscribe", "args": {"topics": [["state"]]}},
    ],
)
def test_a_request_of_the_wrong_shape_is_refused_and_the_next_one_served(
    tmp_path: Path, frame: Facts
) -> None:
    async def work(daemon: Daemon) -> None:
        good = {"id": "any", "op": "echo", "args": {"a": 1}}
        sock = _raw(daemon, pack_frame(frame) + pack_frame(good))
        refused, served = await _read_frames(sock, 2)
        assert refused["id"] == 5
        assert refused["error"][0] in {"invalid_request_error", "not_found"}
        assert served == {"id": "any", "ok": {"a": 1}}
        sock.close()

    _serve(tmp_path, work)


# -- many at once


def test_a_hundred_requests_run_beside_each_other_and_each_gets_its_answer(
    tmp_path: Path,
) -> None:
    async def work(daemon: Daemon) -> None:
        client = await _client(daemon)
        requests = [
            asyncio.create_task(client.request("held", {"n": number}, 9))
            for number in range(100)
        ]
        await until(lambda: daemon.running == 100)
        assert await client.request("echo", {"quick": 1}) == {"quick": 1}
        daemon.gate.set()
        answers = await asyncio.gather(*requests)
        assert answers == [{"n": number} for number in range(100)]
        client.close()

    _serve(tmp_path, work)


def test_a_hundred_clients_are_served_beside_each_other(tmp_path: Path) -> None:
    async def work(daemon: Daemon) -> None:
        clients = [await _client(daemon) for _ in range(100)]
        requests = [
            asyncio.create_task(client.request("held", {"n": number}, 9))
            for number, client in enumerate(clients)
        ]
        await until(lambda: daemon.running == 100)
        daemon.gate.set()
        assert await asyncio.gather(*requests) == [{"n": n} for n in range(100)]
        for client in clients:
            client.close()

    _serve(tmp_path, work)


def test_requests_beyond_what_one_connection_may_run_are_refused(
    tmp_path: Path,
) -> None:
    async def work(daemon: Daemon) -> None:
        client = await _client(daemon)
        held = [asyncio.create_task(client.request("held")) for _ in range(256)]
        await until(lambda: daemon.running == 256)
        with pytest.raises(CapacityError, match="256 requests"):
            await client.request("echo")
        other = await _client(daemon)
        assert await other.request("echo") == {}
        daemon.gate.set()
        await asyncio.gather(*held)
        assert await client.request("echo") == {}
        client.close()
        other.close()

    _serve(tmp_path, work)


# -- deadlines and ends


def test_a_request_ends_at_the_deadline_of_its_client(tmp_path: Path) -> None:
    async def work(daemon: Daemon) -> None:
        client = await _client(daemon)
        began_s = time.monotonic()
        with pytest.raises(TimeoutError):
            await client.request("held", {"n": 1}, 0.05)
        assert 0.04 < time.monotonic() - began_s < 2
        daemon.gate.set()  # the late answer is nobody's
        assert await client.request("echo", {"a": 1}) == {"a": 1}
        assert client._waiting == {}
        client.close()

    _serve(tmp_path, work)


def test_what_was_ordered_goes_on_when_the_client_leaves(tmp_path: Path) -> None:
    async def work(daemon: Daemon) -> None:
        client = await _client(daemon)
        request = asyncio.create_task(client.request("held"))
        await until(lambda: daemon.running)
        client.close()
        with pytest.raises(ControlClosed):
            await request
        await until(lambda: not daemon.server.connections)
        assert daemon.running == 1
        daemon.gate.set()
        await until(lambda: daemon.running == 0)

    _serve(tmp_path, work)


def test_the_end_of_the_daemon_ends_every_request(tmp_path: Path) -> None:
    async def work(daemon: Daemon) -> None:
        client = await _client(daemon)
        request = asyncio.create_task(client.request("held", {}, 9))
        await until(lambda: daemon.running)
        daemon.server.close()
        with pytest.raises(ControlClosed):
            await request
        await client.closed
        with pytest.raises(ControlClosed):
            await client.request("echo")
        with pytest.raises(ConnectionRefusedError):
            await ControlClient().connect(daemon.path, 1)

    _serve(tmp_path, work)


def test_a_subscription_that_nobody_answers_ends_too(tmp_path: Path) -> None:
    async def work() -> None:
        with bind_unix(tmp_path / "control.sock", _KIND, 0o660):
            client = ControlClient()
            await client.connect(tmp_path / "control.sock", 1)
            with pytest.raises(TimeoutError):
                await client.subscribe(["state"], lambda *_: None, 0.05)
            client.close()
            await client.closed

    run(work())


def test_a_daemon_that_accepts_and_says_nothing_costs_the_timeout(
    tmp_path: Path,
) -> None:
    async def work() -> None:
        with bind_unix(tmp_path / "control.sock", _KIND, 0o660) as listener:
            client = ControlClient()
            await client.connect(tmp_path / "control.sock", 1)
            with pytest.raises(TimeoutError):
                await client.request("echo", {}, 0.05)
            client.close()
            await client.closed
            listener.listen(0)  # the first one, never accepted, fills the queue
            with pytest.raises(TimeoutError):
                await ControlClient().connect(tmp_path / "control.sock", 0.05)

    run(work())


# -- topics


def test_a_subscriber_gets_the_current_value_at_once_and_then_each_change(
    tmp_path: Path,
) -> None:
    async def work(daemon: Daemon) -> None:
        client = await _client(daemon)
        seen: list[Any] = []
        await client.subscribe(["state"], lambda *event: seen.append(event))
        await until(lambda: seen)
        assert seen == [("state", {"version": 1})]
        for version in (2, 3):
            daemon.server.publish("state", {"version": version})
        await until(lambda: len(seen) == 3)
        assert seen[1:] == [("state", {"version": 2}), ("state", {"version": 3})]
        client.close()

    _serve(tmp_path, work)


def test_a_topic_that_is_named_twice_is_sent_once(tmp_path: Path) -> None:
    async def work(daemon: Daemon) -> None:
        client = await _client(daemon)
        seen: list[Any] = []
        await client.subscribe(["state"] * 1000, lambda *event: seen.append(event))
        await client.request("echo")
        assert seen == [("state", {"version": 1})]
        client.close()

    _serve(tmp_path, work)


def test_a_topic_of_events_has_no_value_to_begin_with(tmp_path: Path) -> None:
    async def work(daemon: Daemon) -> None:
        client = await _client(daemon)
        seen: list[Any] = []
        await client.subscribe(["events", "state"], lambda *event: seen.append(event))
        daemon.server.publish("events", {"kind": "device.died"})
        await until(lambda: len(seen) == 2)
        assert seen == [("state", {"version": 1}), ("events", {"kind": "device.died"})]
        client.close()

    _serve(tmp_path, work)


def test_nobody_hears_of_a_topic_that_it_did_not_ask_for(tmp_path: Path) -> None:
    async def work(daemon: Daemon) -> None:
        client, other = await _client(daemon), await _client(daemon)
        seen: list[Any] = []
        await client.subscribe(["events"], lambda *event: seen.append(event))
        daemon.server.publish("state", {"version": 2})
        daemon.server.publish("events", {"kind": "x"})
        assert await other.request("echo") == {}
        await until(lambda: seen)
        assert seen == [("events", {"kind": "x"})]
        client.close()
        other.close()

    _serve(tmp_path, work)


def test_a_subscription_need_not_be_awaited(tmp_path: Path) -> None:
    async def work(daemon: Daemon) -> None:
        reported: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda *r: reported.append(r))
        client = await _client(daemon)
        seen: list[Any] = []
        client.subscribe(["gossip"], lambda *event: seen.append(event))
        client.subscribe(["state"], lambda *event: seen.append(event))
        await until(lambda: seen)
        with pytest.raises(ClientError, match="gossip"):
            await client.subscribe(["gossip"], lambda *_: None)
        client.close()
        assert reported == []

    _serve(tmp_path, work)


def test_a_subscriber_that_does_not_read_is_dropped_and_the_others_are_not(
    tmp_path: Path,
) -> None:
    async def work(daemon: Daemon) -> None:
        ask = {"id": 1, "op": "subscribe", "args": {"topics": ["state"]}}
        deaf = _raw(daemon, pack_frame(ask))
        client = await _client(daemon)
        seen: list[Facts] = []
        await client.subscribe(["state"], lambda _, data: seen.append(data))
        await until(lambda: len(daemon.server.connections) == 2)
        data = {"data": bytes(50_000)}
        published = 0
        while len(daemon.server.connections) == 2:
            daemon.server.publish("state", data)
            published += 1
            assert published < 200, "a backlog without bound"
            await asyncio.sleep(0.001)
        daemon.server.publish("state", {"version": "last"})
        await until(lambda: seen[-1] == {"version": "last"})
        assert len(seen) == 1 + published + 1, "the one that reads missed nothing"
        client.close()
        deaf.close()

    _serve(tmp_path, work)


def test_one_value_larger_than_the_backlog_drops_nobody(tmp_path: Path) -> None:
    async def work(daemon: Daemon) -> None:
        client = await _client(daemon)
        daemon.state = {"data": bytes(3 << 20)}
        seen: list[Facts] = []
        await client.subscribe(["state"], lambda _, data: seen.append(data))
        await until(lambda: seen)
        assert len(seen[0]["data"]) == 3 << 20
        client.close()

    _serve(tmp_path, work)


def test_a_client_that_asks_and_does_not_read_is_dropped(tmp_path: Path) -> None:
    async def work(daemon: Daemon) -> None:
        client = await _client(daemon)
        ask = pack_frame({"id": 1, "op": "big", "args": {"size": 300_000}})
        deaf = _raw(daemon, ask * 30)
        await until(lambda: _is_hung_up(deaf))
        assert await client.request("echo") == {}
        client.close()
        deaf.close()

    _serve(tmp_path, work)


def test_a_daemon_that_closes_while_clients_arrive_leaves_nothing_open(
    tmp_path: Path,
) -> None:
    async def work(daemon: Daemon) -> None:
        clients = [_raw(daemon) for _ in range(40)]
        await until(lambda: daemon.server.connections)
        daemon.server.close()
        for client in clients:
            await _is_closed(client)

    _serve(tmp_path, work)


def test_a_flood_of_connections_is_turned_away_at_a_bound(tmp_path: Path) -> None:
    async def work(daemon: Daemon) -> None:
        silent = []
        for number in range(512):
            silent.append(_raw(daemon))
            if number % 64 == 63:
                await until(partial(daemon.has_connections, number + 1))
        await _is_closed(_raw(daemon))
        silent.pop().close()
        await until(partial(daemon.has_connections, 511))
        client = await _client(daemon)
        assert await client.request("echo") == {}
        client.close()
        for sock in silent:
            sock.close()

    def with_room() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        _serve(tmp_path, work)

    in_fork(with_room)


# -- nonsense


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", MAX_FRAME_BYTES + 1) + b"x",
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">I", 1) + b"\xc1",
        struct.pack(">I", 1) + b"\x90",
    ],
)
def test_bytes_that_are_no_frame_are_answered_and_closed(
    tmp_path: Path, data: bytes
) -> None:
    async def work(daemon: Daemon) -> None:
        client = await _client(daemon)
        sock = _raw(daemon, data)
        (refused,) = await _read_frames(sock, 1)
        assert refused["id"] is None
        assert refused["error"][0] == "invalid_request_error"
        await _is_closed(sock)
        assert await client.request("echo") == {}
        client.close()

    _serve(tmp_path, work)


def test_half_a_frame_and_an_end_is_an_end(tmp_path: Path) -> None:
    async def work(daemon: Daemon) -> None:
        frame = pack_frame({"id": 1, "op": "echo", "args": {}})
        sock = _raw(daemon, frame[:-1])
        await until(lambda: daemon.server.connections)
        sock.shutdown(socket.SHUT_WR)
        await _is_closed(sock)
        await until(lambda: not daemon.server.connections)

    _serve(tmp_path, work)


def _faked(tmp_path: Path, *said: bytes) -> None:
    """A request to a daemon that answers with these bytes and stays."""

    async def work() -> None:
        with bind_unix(tmp_path / "control.sock", _KIND, 0o660) as listener:
            client = ControlClient()
            await client.connect(tmp_path / "control.sock", 1)
            sock, _ = listener.accept()
            sock.sendall(b"".join(said))
            try:
                await client.request("echo", {}, 3)
            finally:
                sock.close()
                client.close()
                await client.closed

    run(work())


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xff\xff\xff",
        struct.pack(">I", 1) + b"\xc1",
        pack_frame({"id": 1}),
        pack_frame({"id": 1, "ok": 7}),
        pack_frame({"id": 1, "error": ["x"]}),
        pack_frame({"id": 1, "error": None}),
        pack_frame({"id": None, "error": ["x"]}),
        pack_frame({"topic": 1, "data": {}}),
        pack_frame({"topic": "state", "data": 1}),
    ],
)
def test_a_daemon_that_talks_nonsense_ends_the_request(
    tmp_path: Path, said: bytes
) -> None:
    with pytest.raises(ControlClosed):
        _faked(tmp_path, said)


def test_an_answer_that_nobody_asked_for_is_ignored(tmp_path: Path) -> None:
    async def work() -> None:
        with bind_unix(tmp_path / "control.sock", _KIND, 0o660) as listener:
            client = ControlClient()
            await client.connect(tmp_path / "control.sock", 1)
            sock, _ = listener.accept()
            for stray in ({"id": 99, "ok": {}}, {"id": "x", "ok": {}}):
                sock.sendall(pack_frame(stray))
            sock.sendall(pack_frame({"topic": "unasked", "data": {}}))
            sock.sendall(pack_frame({"id": 1, "ok": {"a": 1}}) * 2)
            assert await client.request("echo", {}, 3) == {"a": 1}
            sock.close()
            await client.closed

    run(work())


# -- who may


def test_a_peer_that_may_not_control_is_told_so_and_closed(tmp_path: Path) -> None:
    async def work(daemon: Daemon) -> None:
        daemon.allowed = False
        client = await _client(daemon)
        with pytest.raises(ClientError) as caught:
            await client.request("echo")
        assert caught.value.code == "insufficient_permissions"
        await client.closed
        client = await _client(daemon)
        with pytest.raises(ClientError):
            await client.subscribe(["state"], lambda *_: pytest.fail("told"))
        await client.closed
        assert daemon.running == 0

    _serve(tmp_path, work)


def test_of_a_refused_peer_not_even_the_next_request_runs(tmp_path: Path) -> None:
    async def work(daemon: Daemon) -> None:
        daemon.allowed = False
        sock = _raw(daemon, pack_frame({"id": 1, "op": "held"}) * 3)
        await _read_frames(sock, 1)
        await _is_closed(sock)
        assert daemon.running == 0

    _serve(tmp_path, work)
