"""attach.sock: who gets in, what they get, how each side learns of the other's end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ipc.attach import PROTOCOL, AttachClient, AttachServer, WorkerLink
from ipc.attachwire import ATTACH, Down, Hello, Pair, Quarantine, Refused, Welcome
from ipc.errors import CapacityError, ClientError, PeerLost, ServiceError
from ipc.packet import receive_packet, send_packet
from ipc.pair import PairFds, create_pair
from ipc.peer import Peer
from ipc.unixsocket import bind_unix, connect_unix
from tests.ipc.processkit import finish, fork, open_fds, run, until

_KIND = socket.SOCK_SEQPACKET


@dataclass
class Desk:
    """A supervisor's side, and what it was told."""

    path: Path
    limit: int = 4
    allow: Callable[[Peer], bool] = lambda _peer: True
    hello_timeout_s: float = 5.0
    attached: list[WorkerLink] = field(default_factory=list)
    lost: list[WorkerLink] = field(default_factory=list)

    quarantined: list[tuple[int, str, str]] = field(default_factory=list)

    def _quarantine(self, link: WorkerLink, told: Quarantine) -> None:
        self.quarantined.append((link.id, told.fingerprint, told.model))

    def has_lost(self, count: int) -> bool:
        return len(self.lost) == count

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Desk]:
        self.server = AttachServer(
            bind_unix(self.path, _KIND, 0o660),
            on_attached=self.attached.append,
            on_lost=self.lost.append,
            limit=self.limit,
            allow=self.allow,
            on_quarantine=self._quarantine,
            hello_timeout_s=self.hello_timeout_s,
        )
        self.server.start(asyncio.get_running_loop())
        try:
            yield self
        finally:
            self.server.close()


class Worker:
    """A worker's side, and what it was told."""

    def __init__(self, path: Path, *, name: str = "w") -> None:
        self.heard: list[Any] = []
        self.pairs: list[PairFds] = []
        self.num_lost = 0
        self.leaves_on_down = False
        self.client = AttachClient(
            path,
            role="worker",
            name=name,
            build="b1",
            on_pair=self._on_pair,
            on_down=self._on_down,
            on_lost=self._on_lost,
        )

    def _on_pair(self, device: str, generation: int, pair: PairFds) -> None:
        self.heard.append((device, generation))
        self.pairs.append(pair)

    def has_heard(self, count: int) -> bool:
        return len(self.heard) == count

    def _on_down(self, *down: object) -> None:
        self.heard.append(down)
        if self.leaves_on_down:
            self.close()

    def _on_lost(self) -> None:
        self.num_lost += 1

    async def attach(self) -> Worker:
        await self.client.connect(5)
        return self

    def close(self) -> None:
        self.client.close()
        for pair in self.pairs:
            pair.close()


def _desk(
    tmp_path: Path, work: Callable[[Desk], Coroutine[Any, Any, None]], **more: Any
) -> None:
    async def main() -> None:
        async with Desk(tmp_path / "attach.sock", **more).open() as desk:
            await work(desk)

    before = open_fds()
    run(main())
    assert open_fds() == before


def _raw(path: Path, *records: bytes) -> socket.socket:
    """A peer that says whatever it likes."""
    sock = connect_unix(path, _KIND, timeout_s=1)
    for record in records:
        assert send_packet(sock, record)
    return sock


async def _answer(sock: socket.socket) -> Any:
    received = await until(lambda: receive_packet(sock), "an answer")
    assert received is not None
    return ATTACH.decode(received[0])


def _hello(protocol: int = PROTOCOL) -> bytes:
    return ATTACH.encode(Hello(protocol, "b", "worker", "raw"))


async def _is_closed(sock: socket.socket) -> None:
    sock.setblocking(False)
    assert await asyncio.get_running_loop().sock_recv(sock, 1) == b""
    sock.close()


# -- getting in


def test_a_worker_that_says_hello_is_attached_with_its_name_and_peer(
    tmp_path: Path,
) -> None:
    async def work(desk: Desk) -> None:
        worker = await Worker(desk.path, name="worker 1").attach()
        (link,) = desk.attached
        assert (link.role, link.name, link.build) == ("worker", "worker 1", "b1")
        assert link.peer.pid == os.getpid()
        assert worker.client.worker == link.id
        worker.close()

    _desk(tmp_path, work)


def test_no_two_workers_ever_have_the_same_id(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        for number in range(1, 6):
            worker = await Worker(desk.path).attach()
            worker.close()
            await until(partial(desk.has_lost, number))
        assert len({link.id for link in desk.attached}) == 5
        assert desk.lost == desk.attached

    _desk(tmp_path, work)


def test_another_protocol_is_refused_with_the_number_that_is_spoken(
    tmp_path: Path,
) -> None:
    async def work(desk: Desk) -> None:
        sock = _raw(desk.path, _hello(PROTOCOL + 1))
        refused = await _answer(sock)
        assert isinstance(refused, Refused)
        assert refused.error[0] == "invalid_request_error"
        assert refused.error[4] == {"protocol": PROTOCOL}
        await _is_closed(sock)
        assert desk.attached == desk.lost == []

    _desk(tmp_path, work)


def test_a_worker_over_the_limit_is_refused_until_a_seat_is_free(
    tmp_path: Path,
) -> None:
    async def work(desk: Desk) -> None:
        first, second = [await Worker(desk.path).attach() for _ in range(2)]
        late = Worker(desk.path)
        with pytest.raises(CapacityError, match="2 workers are attached"):
            await late.attach()
        first.close()
        await until(lambda: desk.lost)
        third = await Worker(desk.path).attach()
        assert late.num_lost == 0
        for worker in (second, third):
            worker.close()

    _desk(tmp_path, work, limit=2)


def test_a_peer_that_may_not_attach_is_told_so(tmp_path: Path) -> None:
    asked: list[Peer] = []

    def nobody(peer: Peer) -> bool:
        asked.append(peer)
        return False

    async def work(desk: Desk) -> None:
        with pytest.raises(ClientError) as caught:
            await Worker(desk.path).attach()
        assert caught.value.code == "insufficient_permissions"
        assert [peer.uid for peer in asked] == [os.geteuid()]
        assert desk.attached == desk.lost == []

    _desk(tmp_path, work, allow=nobody)


def test_a_peer_that_says_nothing_is_closed_in_the_end(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        worker = await Worker(desk.path).attach()
        await _is_closed(_raw(desk.path))
        assert desk.lost == [], "whoever said hello has all the time in the world"
        worker.close()

    _desk(tmp_path, work, hello_timeout_s=0.05)


def test_a_peer_that_says_hello_and_leaves_at_once_is_nobodys_worker(
    tmp_path: Path,
) -> None:
    async def work(desk: Desk) -> None:
        for _ in range(20):
            _raw(desk.path, _hello()).close()
        worker = await Worker(desk.path).attach()
        await until(lambda: len(desk.server._seats) == 1)
        assert len(desk.lost) == len(desk.attached) - 1
        worker.close()

    _desk(tmp_path, work)


def test_many_that_say_nothing_do_not_keep_a_worker_out(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        silent = []
        for _ in range(64):
            silent.append(_raw(desk.path))
            await asyncio.sleep(0)
        await _is_closed(_raw(desk.path))  # one too many
        silent.pop().close()
        await until(lambda: len(desk.server._seats) == 63)
        worker = await Worker(desk.path).attach()
        worker.close()
        for sock in silent:
            sock.close()

    _desk(tmp_path, work)


# -- pairs and downs


def test_a_pair_arrives_with_its_five_descriptors_in_order(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        worker = await Worker(desk.path).attach()
        pair = create_pair(generation=3)
        desk.attached[0].send_pair("cpu-0", 3, pair, True)
        await until(lambda: worker.pairs)
        assert worker.heard == [("cpu-0", 3)]
        (received,) = worker.pairs
        same = zip(pair.numbers(), received.numbers(), strict=True)
        assert all(os.path.sameopenfile(ours, theirs) for ours, theirs in same)
        assert not any(map(os.get_inheritable, received.numbers()))
        pair.close()
        worker.close()

    _desk(tmp_path, work)


def test_what_happens_to_a_device_is_heard_in_order(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        worker = await Worker(desk.path).attach()
        (link,) = desk.attached
        for generation in range(1, 31):
            pair = create_pair(generation=generation, capacity_bytes=1 << 13)
            link.send_pair("cpu-0", generation, pair, False)
            link.send_down("cpu-0", generation, "killed", ((7, 1), (8, 2)), (9,))
            pair.close()
            await until(partial(worker.has_heard, 2 * generation))
        for generation in range(1, 31):
            up, down = worker.heard[2 * generation - 2 : 2 * generation]
            assert up == ("cpu-0", generation)
            charged = (((7, 1), (8, 2)), (9,))
            assert down == ("cpu-0", generation, "killed", *charged)
        worker.close()

    _desk(tmp_path, work)


def test_a_worker_tells_what_its_convicted_request_was(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        worker = await Worker(desk.path).attach()
        for number in range(3):
            worker.client.quarantine(f"{number:032x}", "tiny")
        await until(lambda: len(desk.quarantined) == 3)
        (link,) = desk.attached
        told = [(link.id, f"{number:032x}", "tiny") for number in range(3)]
        assert desk.quarantined == told
        worker.close()
        worker.client.quarantine("0" * 32, "tiny")  # into nothing
        await until(lambda: desk.lost)

    _desk(tmp_path, work)


def test_a_worker_that_says_hello_twice_is_lost(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        sock = _raw(desk.path, _hello(), _hello())
        await until(lambda: desk.lost)
        sock.close()

    _desk(tmp_path, work)


# -- ends


def test_the_death_of_a_worker_is_seen_and_only_its_own(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        survivor = await Worker(desk.path).attach()

        def worker() -> None:
            sock = _raw(desk.path, _hello())
            signal.pause()
            sock.close()

        pid = fork(worker)
        await until(lambda: len(desk.attached) == 2)
        finish(pid)
        await until(lambda: desk.lost)
        assert desk.lost == [desk.attached[1]]
        desk.attached[0].send_down("cpu-0", 1, "died")
        await until(lambda: survivor.heard)
        survivor.close()

    _desk(tmp_path, work)


def test_the_death_of_the_supervisor_is_seen_once(tmp_path: Path) -> None:
    async def work() -> None:
        path = tmp_path / "attach.sock"

        def supervisor() -> None:
            async def serve() -> None:
                async with Desk(path).open():
                    await asyncio.sleep(30)

            run(serve())

        pid = fork(supervisor)
        await until(path.exists)
        worker = Worker(path)
        await until_connected(worker)
        finish(pid)
        await until(lambda: worker.num_lost)
        await asyncio.sleep(0)
        assert worker.num_lost == 1
        worker.close()
        worker.close()

    run(work())


async def until_connected(worker: Worker) -> None:
    """The file is there a moment before anybody listens."""
    while True:
        try:
            await worker.attach()
            return
        except ConnectionRefusedError:
            await asyncio.sleep(0.002)


def test_a_worker_that_the_supervisor_drops_is_lost_at_the_worker_only(
    tmp_path: Path,
) -> None:
    async def work(desk: Desk) -> None:
        worker = await Worker(desk.path).attach()
        (link,) = desk.attached
        link.close()
        link.close()
        link.send_down("cpu-0", 1, "sent to nobody")
        await until(lambda: worker.num_lost)
        assert desk.lost == []
        worker.close()

    _desk(tmp_path, work)


def test_a_worker_that_does_not_read_is_dropped_and_nobody_waits(
    tmp_path: Path,
) -> None:
    async def work(desk: Desk) -> None:
        sock = _raw(desk.path, _hello())
        reader = await Worker(desk.path).attach()
        assert isinstance(await _answer(sock), Welcome)
        deaf = desk.attached[0]
        for number in range(2_000):
            deaf.send_down("cpu-0", number, "x" * 100)
        assert desk.lost == [], "never inside a call of the supervisor's"
        await until(lambda: desk.lost)
        assert desk.lost == [deaf], "and once"
        desk.attached[1].send_down("cpu-0", 1, "died")
        await until(lambda: reader.heard)
        reader.close()
        sock.close()

    _desk(tmp_path, work)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xc1",
        b"x" * 1000,
        b"x" * 170_000,
        b"\x91\x01",
        _hello(),
        ATTACH.encode(Welcome(1)),
        ATTACH.encode(Pair("cpu-0", 1, False)),
    ],
)
def test_garbage_ends_the_connection_that_it_came_from_and_no_other(
    tmp_path: Path, garbage: bytes
) -> None:
    async def work(desk: Desk) -> None:
        survivor = await Worker(desk.path).attach()
        liar = connect_unix(desk.path, _KIND, timeout_s=1)
        send_packet(liar, _hello())
        await _answer(liar)
        liar.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        socket.send_fds(liar, [garbage], [0, 1, 2])
        await until(lambda: desk.lost)
        assert desk.lost == [desk.attached[1]]
        liar.close()
        desk.attached[0].send_down("cpu-0", 1, "died")
        await until(lambda: survivor.heard)
        survivor.close()

    _desk(tmp_path, work)


def test_garbage_instead_of_hello_is_closed_without_a_word(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        for garbage in (b"\xc1", ATTACH.encode(Down("cpu-0", 1, ""))):
            await _is_closed(_raw(desk.path, garbage))
        assert desk.attached == desk.lost == []

    _desk(tmp_path, work)


# -- a supervisor that can't be reached, or talks nonsense


def test_without_a_supervisor_connecting_fails_at_once(tmp_path: Path) -> None:
    path = tmp_path / "attach.sock"
    with pytest.raises(FileNotFoundError):
        run(Worker(path).client.connect(5))
    bind_unix(path, _KIND, 0o660).close()
    with pytest.raises(ConnectionRefusedError):
        run(Worker(path).client.connect(5))


def test_a_supervisor_that_does_not_answer_costs_the_timeout(tmp_path: Path) -> None:
    before = open_fds()
    path = tmp_path / "attach.sock"
    with bind_unix(path, _KIND, 0o660), pytest.raises(TimeoutError):
        run(Worker(path).client.connect(0.05))
    assert open_fds() == before


def test_a_full_queue_is_waited_for_until_the_timeout(tmp_path: Path) -> None:
    path = tmp_path / "attach.sock"

    async def work() -> None:
        listener = bind_unix(path, _KIND, 0o660)
        listener.listen(0)
        holder = connect_unix(path, _KIND, timeout_s=1)
        with pytest.raises(TimeoutError):
            await Worker(path).client.connect(0.05)
        worker = Worker(path)
        connecting = asyncio.create_task(worker.attach())
        await asyncio.sleep(0)
        accepted: list[socket.socket] = []
        for _ in range(2):
            await until(lambda: _accept(listener, accepted))
        send_packet(accepted[1], ATTACH.encode(Welcome(7)))
        await connecting
        assert worker.client.worker == 7
        worker.close()
        for sock in (listener, holder, *accepted):
            sock.close()

    run(work())


def _accept(listener: socket.socket, accepted: list[socket.socket]) -> bool:
    try:
        accepted.append(listener.accept()[0])
    except BlockingIOError:
        return False
    return True


def _supervised_by(
    tmp_path: Path, *records: tuple[bytes, int], closes: bool = False
) -> Worker:
    """A worker whose supervisor sends these records, each with some descriptors."""
    path = tmp_path / "attach.sock"
    worker = Worker(path)

    async def work() -> None:
        listener = bind_unix(path, _KIND, 0o660)
        accepted: list[socket.socket] = []

        def greet() -> None:
            _accept(listener, accepted)
            for record, num_fds in records:
                send_packet(accepted[0], record, [0] * num_fds)
            if closes:
                accepted[0].recv(1000)
                accepted[0].close()

        asyncio.get_running_loop().add_reader(listener, greet)
        try:
            await worker.client.connect(2)
            await until(lambda: worker.num_lost)
        finally:
            asyncio.get_running_loop().remove_reader(listener)
            for sock in (listener, *accepted):
                sock.close()

    before = open_fds()
    try:
        run(work())
    finally:
        worker.close()
        assert open_fds() == before
    return worker


_WELCOME = (ATTACH.encode(Welcome(1)), 0)


@pytest.mark.parametrize(
    ("record", "num_fds"),
    [
        (b"\xc1", 2),
        (ATTACH.encode(Pair("cpu-0", 1, False)), 4),
        (ATTACH.encode(Pair("cpu-0", 1, False)), 6),
        (ATTACH.encode(Pair("cpu-0", 1, False)), 0),
        (ATTACH.encode(Down("cpu-0", 1, "")), 1),
        (ATTACH.encode(Welcome(2)), 0),
        (_hello(), 0),
    ],
)
def test_a_supervisor_that_talks_nonsense_is_lost(
    tmp_path: Path, record: bytes, num_fds: int
) -> None:
    worker = _supervised_by(tmp_path, _WELCOME, (record, num_fds), (record, num_fds))
    assert worker.num_lost == 1
    assert worker.heard == []


@pytest.mark.parametrize(
    "record", [b"\xc1", ATTACH.encode(Down("cpu-0", 1, "")), _hello()]
)
def test_nonsense_instead_of_a_welcome_fails_the_connecting(
    tmp_path: Path, record: bytes
) -> None:
    with pytest.raises(PeerLost) as caught:
        _supervised_by(tmp_path, (record, 0))
    assert caught.value.__cause__ is not None


def test_a_refusal_that_makes_no_sense_is_still_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(PeerLost, match="makes no sense"):
        _supervised_by(tmp_path, (ATTACH.encode(Refused(["x"])), 0))


def test_a_supervisor_that_closes_before_the_welcome_is_lost(tmp_path: Path) -> None:
    with pytest.raises(PeerLost):
        _supervised_by(tmp_path, closes=True)


def test_pairs_that_follow_the_welcome_at_once_are_not_missed(tmp_path: Path) -> None:
    pair = (ATTACH.encode(Pair("cpu-0", 1, False)), 5)
    down = (ATTACH.encode(Down("cpu-0", 1, "died")), 0)
    worker = _supervised_by(tmp_path, _WELCOME, *(pair, down) * 20, (b"\xc1", 0))
    assert worker.heard == [("cpu-0", 1), ("cpu-0", 1, "died", (), ())] * 20


def test_a_worker_that_leaves_inside_a_callback_hears_no_more(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        worker = Worker(desk.path)
        worker.leaves_on_down = True
        await worker.attach()
        for generation in (1, 2):
            desk.attached[0].send_down("cpu-0", generation, "")
        await until(lambda: desk.lost)
        assert worker.heard == [("cpu-0", 1, "", (), ())]
        assert worker.num_lost == 0

    _desk(tmp_path, work)


def test_a_refused_worker_can_tell_it_from_a_lost_one(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        worker = Worker(desk.path)
        with pytest.raises(ServiceError):
            await worker.attach()
        await asyncio.sleep(0)
        assert worker.num_lost == 0

    _desk(tmp_path, work, limit=0)
