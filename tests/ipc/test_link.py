"""The device link: messages with descriptors, EOF, and a peer that talks nonsense."""

from __future__ import annotations

import array
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from ipc.link import Link, LinkClosed, LinkFull, create_link
from ipc.messages import (
    Attach,
    Fault,
    Hello,
    Load,
    LoadProgress,
    Message,
    MessageError,
    Stop,
)
from ipc.packet import MAX_FDS, MAX_PACKET_BYTES, send_packet
from tests.ipc.processkit import finish, fork, in_fork, open_fds, wait_for

_PROGRESS = LoadProgress("m", "weights", 1, 2)


@pytest.fixture
def ends() -> Iterator[tuple[Link, Link]]:
    one, other = create_link()
    yield one, other
    one.close()
    other.close()


@pytest.fixture
def raw() -> Iterator[tuple[socket.socket, Link]]:
    """A link whose other end is a bare socket."""
    sock, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link = Link(peer)
    yield sock, link
    sock.close()
    link.close()


def _rights(fds: list[int]) -> list[tuple[int, int, array.array[int]]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]


@pytest.mark.parametrize(
    "message",
    [
        Stop(),
        Load("m", "/models/m", "auto", "none", 0, {"step_ms": 5}),
        Hello(1, 2, "fake", 3, 4),
        Fault("device", "X", 700, ("X: " + "é" * 2000,) * 16, "m", 3, (1, 2**64 - 1)),
    ],
)
def test_a_message_arrives_as_it_was_sent(
    ends: tuple[Link, Link], message: Message
) -> None:
    one, other = ends
    one.send(message)
    assert other.receive() == (message, [])
    assert other.receive() is None


def test_messages_keep_their_order_both_ways(ends: tuple[Link, Link]) -> None:
    one, other = ends
    for number in range(50):
        one.send(LoadProgress("m", "a", number, 50))
        other.send(LoadProgress("m", "b", number, 50))
    for number in range(50):
        assert other.receive() == (LoadProgress("m", "a", number, 50), [])
        assert one.receive() == (LoadProgress("m", "b", number, 50), [])


def test_descriptors_arrive_in_their_order_and_close_on_exec(
    ends: tuple[Link, Link],
) -> None:
    one, other = ends
    files = [os.memfd_create(f"f{number}") for number in range(5)]
    one.send(Attach(1, 1, False), files)
    received = other.receive()
    assert received is not None
    message, fds = received
    assert message == Attach(1, 1, False)
    inodes = [os.fstat(fd).st_ino for fd in fds]
    assert inodes == [os.fstat(fd).st_ino for fd in files]
    assert not any(os.get_inheritable(fd) for fd in fds)
    for fd in (*files, *fds):
        os.close(fd)


def test_an_end_taken_over_from_a_parent_works_and_is_closed_with_the_link() -> None:
    one, other = create_link()
    fd = os.dup(other.fileno())
    os.set_inheritable(fd, True)
    other.close()
    taken = Link.from_fd(fd)
    assert not os.get_inheritable(fd)
    one.send(Stop())
    assert taken.receive() == (Stop(), [])
    taken.close()
    with pytest.raises(LinkClosed):
        one.receive()
    one.close()


# -- the end of the peer


def test_what_was_sent_before_the_end_is_read_before_the_end(
    ends: tuple[Link, Link],
) -> None:
    one, other = ends
    one.send(_PROGRESS)
    one.close()
    assert other.receive() == (_PROGRESS, [])
    for _ in range(2):
        with pytest.raises(LinkClosed):
            other.receive()


def test_sending_to_a_peer_that_is_gone_says_so(ends: tuple[Link, Link]) -> None:
    one, other = ends
    other.close()
    with pytest.raises(LinkClosed):
        one.send(Stop())


def test_the_death_of_the_process_at_the_other_end_is_eof(
    ends: tuple[Link, Link],
) -> None:
    one, other = ends

    def device() -> None:
        one.close()
        other.send(_PROGRESS)
        signal.pause()

    pid = fork(device)
    other.close()
    assert select.select([one], [], [], 10)[0]
    assert one.receive() == (_PROGRESS, [])
    assert one.receive() is None
    one.send(_PROGRESS)  # never read: the end is a reset, not a clean one
    finish(pid)
    with pytest.raises(LinkClosed):
        one.receive()


def _fill(link: Link) -> None:
    try:
        for _ in range(10_000):
            link.send(_PROGRESS, timeout_s=0)
    except LinkFull:
        return
    raise AssertionError("the link takes any number of messages")


def test_a_peer_that_does_not_read_costs_a_bounded_wait(
    ends: tuple[Link, Link],
) -> None:
    one, other = ends
    _fill(one)
    began_s = time.monotonic()
    with pytest.raises(LinkFull):
        one.send(_PROGRESS, timeout_s=0.1)
    assert 0.1 <= time.monotonic() - began_s < 2
    while other.receive() is not None:
        pass
    one.send(_PROGRESS, timeout_s=0)
    assert other.receive() == (_PROGRESS, [])


def test_a_full_link_takes_a_message_as_soon_as_the_peer_reads(
    ends: tuple[Link, Link],
) -> None:
    one, other = ends

    def device() -> None:
        signal.pause()  # SIGUSR1 says that the link is full
        while True:
            if other.receive() is None:
                select.select([other], [], [])

    signal_is_caught = signal.signal(signal.SIGUSR1, lambda *_: None)
    pid = fork(device)
    signal.signal(signal.SIGUSR1, signal_is_caught)
    other.close()
    _fill(one)

    def woken() -> bool:
        os.kill(pid, signal.SIGUSR1)  # again, should it have come before the pause
        return bool(select.select([], [one], [], 0)[1])

    wait_for(woken)
    one.send(_PROGRESS, timeout_s=5)
    finish(pid)


# -- nonsense


@pytest.mark.parametrize("record", [b"\xc1", b"\x91\x7f", b"\x92\x24", b"\x80", b"x"])
def test_a_record_that_is_no_message_is_refused_and_the_next_one_read(
    raw: tuple[socket.socket, Link], record: bytes
) -> None:
    sock, link = raw
    before = open_fds()
    sock.sendmsg([record], _rights([0, 1]))
    sock.send(b"\x91\x24")
    with pytest.raises(MessageError):
        link.receive()
    assert link.receive() == (Stop(), [])
    assert open_fds() == before, "descriptors of a refused record are closed"


def test_more_descriptors_than_we_take_are_an_error_and_all_closed(
    raw: tuple[socket.socket, Link],
) -> None:
    sock, link = raw
    before = open_fds()
    sock.sendmsg([b"\x91\x24"], _rights([0] * (MAX_FDS + 4)))
    with pytest.raises(MessageError, match="cut off"):
        link.receive()
    assert open_fds() == before


def test_a_record_larger_than_one_may_be_is_an_error(
    raw: tuple[socket.socket, Link],
) -> None:
    sock, link = raw
    before = open_fds()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_PACKET_BYTES)
    sock.sendmsg([b"\x91\x24" + bytes(MAX_PACKET_BYTES)], _rights([0]))
    sock.send(b"\x91\x24")
    with pytest.raises(MessageError, match="cut off"):
        link.receive()
    assert link.receive() == (Stop(), [])
    assert open_fds() == before


def test_a_message_too_large_to_send_is_refused_here(ends: tuple[Link, Link]) -> None:
    one, other = ends
    with pytest.raises(MessageError, match="Load of"):
        one.send(Load("m", "f" * MAX_PACKET_BYTES, "auto", "none", 0, {}))
    with pytest.raises(ValueError, match="17 descriptors"):
        one.send(Stop(), [0] * (MAX_FDS + 1))
    assert other.receive() is None


def test_the_largest_message_fits_the_kernels_buffer(
    raw: tuple[socket.socket, Link],
) -> None:
    sock, link = raw
    assert send_packet(sock, b"\x91\x24" + bytes(MAX_PACKET_BYTES - 2))
    with pytest.raises(MessageError, match="not msgpack"):
        link.receive()


def test_descriptors_that_we_have_no_room_for_are_an_error() -> None:
    def device() -> str:
        one, other = create_link()
        one.send(Attach(1, 1, False), [0, 1, 2])
        room = len(os.listdir("/proc/self/fd"))  # one more than are open
        resource.setrlimit(resource.RLIMIT_NOFILE, (room, room))
        try:
            other.receive()
        except MessageError as error:
            return f"{error}, {len(os.listdir('/proc/self/fd')) - room} left"
        return "taken"

    assert in_fork(device) == "a record or its descriptors were cut off, 0 left"
