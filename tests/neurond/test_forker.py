"""What comes back from the zygote, and from the GPUs' reader, when it is no answer."""

from __future__ import annotations

import array
import asyncio
import io
import os
import socket

import pytest

from ipc.child import Child, Reaper, spawn
from ipc.journal import Journal
from ipc.packet import MAX_FDS, receive_packet
from neurond.forker import Forker, ForkFailed, Order
from neurond.gpuwatch import GpuWatch
from tests.neurond.slotkit import running, until


def send_too_many_descriptors(sock: socket.socket) -> None:
    """More than a receiver has room for: the record comes truncated."""
    null = os.open("/dev/null", os.O_RDONLY)
    rights = array.array("i", [null] * (MAX_FDS * 4))
    sock.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    os.close(null)


def is_closed(line: socket.socket) -> bool:
    try:
        return line.recv(1, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False


class Zygote(Forker):
    """A forker whose zygote is the test itself."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(
            Reaper(loop),
            Journal("neurond", stream=io.StringIO(), mode="text"),
            preload="none",
            use_zygote=True,
            on_died=lambda _how: None,
        )
        ours, self.line = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock = ours
        loop.add_reader(ours, self._read)

    async def asked(self) -> asyncio.Task[Child]:
        order: Order = ("device", "fake-0", {})
        task = asyncio.create_task(self.fork(order, (), 5.0))
        await until(lambda: receive_packet(self.line))
        return task


@running
async def test_a_truncated_answer_ends_the_order_and_the_line() -> None:
    zygote = Zygote()
    task = await zygote.asked()
    fds = len(os.listdir("/proc/self/fd"))
    send_too_many_descriptors(zygote.line)
    with pytest.raises(ForkFailed):
        await task
    assert zygote._sock is None
    assert len(os.listdir("/proc/self/fd")) == fds - 1
    zygote.line.close()


@running
async def test_a_zygote_that_closes_its_line_ends_every_order() -> None:
    zygote = Zygote()
    tasks = [await zygote.asked() for _ in range(2)]
    zygote.line.close()
    for task in tasks:
        with pytest.raises(ForkFailed):
            await task


class Sleeper(Zygote):
    def _launch(self) -> Child:
        return spawn("zygote", ["/bin/sleep", "60"])


@running
async def test_a_zygote_that_answers_nothing_is_replaced_and_not_asked_again() -> None:
    zygote = Sleeper()
    zygote.start()
    first = zygote.pid
    other = await zygote.asked()
    with pytest.raises(ForkFailed, match="no answer in time"):
        await zygote.fork(("device", "fake-1", {}), (), 0.05)
    with pytest.raises(ForkFailed):
        await other
    assert zygote._sock is None
    await until(lambda: zygote.pid not in (None, first))
    await zygote.stop()
    zygote.line.close()


@running
async def test_a_truncated_reading_of_the_gpus_closes_their_line() -> None:
    lines: list[socket.socket] = []

    def launch(theirs: socket.socket) -> Child:
        lines.append(theirs.dup())
        pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
        return Child("nvml", pid, os.pidfd_open(pid))

    reaper = Reaper(asyncio.get_running_loop())
    watch = GpuWatch(reaper, launch, set, lambda _keeper, _how: None)
    watch.start()
    send_too_many_descriptors(lines[0])
    await until(lambda: is_closed(lines[0]))
    assert watch.foreign_bytes() == {}
    watch.keeper.stop()
    await watch.keeper.gone.wait()
    watch.close()
    reaper.close()
    lines[0].close()
