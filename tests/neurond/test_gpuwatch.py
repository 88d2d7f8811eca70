"""The watch over the NVML child, with real children that hang, and one that is told to
ignore its end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

import msgpack

from ipc.child import Child, Reaper
from neurond.gpuwatch import GpuWatch, Readings
from neurond.xids import Sighting
from tests.neurond.slotkit import running, until

OURS = 4242


class Stubborn(Child):
    """In uninterruptible sleep, as far as we can tell: SIGKILL has no effect."""

    def kill(self, sig: int = signal.SIGKILL) -> None:
        pass

    def end(self) -> None:
        super().kill()


class Bench:
    """A watch whose children sleep; the test holds their end of each line."""

    def __init__(
        self, kind: Callable[[str, int, int], Child] = Child, most: int = 1
    ) -> None:
        self.now_s = 100.0
        self.children: list[Child] = []
        self.lines: list[socket.socket] = []
        self.heard: list[tuple[Readings, list[tuple[str, Sighting]]]] = []
        self.exits = 0
        self._kind = kind
        self._reaper = Reaper(asyncio.get_running_loop())
        self.watch = GpuWatch(
            self._reaper,
            self._launch,
            lambda: {OURS},
            self._exited,
            hear=lambda readings, seen: self.heard.append((readings, seen)),
            most_written_off=most,
            silence_s=10.0,
            kill_s=2.0,
            clock=lambda: self.now_s,
        )
        self.watch.start()

    def _launch(self, theirs: socket.socket) -> Child:
        self.lines.append(theirs.dup())
        pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
        self.children.append(self._kind("nvml", pid, os.pidfd_open(pid)))
        return self.children[-1]

    def _exited(self, *_how: object) -> None:
        self.exits += 1

    def passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.watch.tick()

    async def says(self, gpus: dict[str, Any], *xids: list[Any]) -> None:
        before = len(self.heard)
        self.lines[-1].send(msgpack.packb({"gpus": gpus, "xids": list(xids)}))
        await until(lambda: len(self.heard) > before)

    async def end(self) -> None:
        for child in self.children:
            Child.kill(child)
        self.watch.keeper.stop(signal.SIGKILL)
        await until(lambda: self.watch.keeper.gone.is_set())
        self.watch.close()
        self._reaper.close()
        for line in self.lines:
            line.close()


@running
async def test_an_xid_comes_with_what_the_gpu_shows_and_who_else_is_there() -> None:
    bench = Bench()
    alone = {"recovery_action": 1, "processes": [[OURS, 9]]}
    shared = {"recovery_action": None, "processes": [[OURS, 9], [7, 5]]}
    await bench.says(
        {"GPU-a": alone, "GPU-b": shared}, ["GPU-a", 48, None], ["GPU-b", 13, 7]
    )
    assert bench.heard[-1][1] == [
        ("GPU-a", Sighting(48, recovery=1)),
        ("GPU-b", Sighting(13, pid=7, others=True)),
    ]
    assert bench.watch.foreign_bytes() == {"GPU-a": 0, "GPU-b": 5}
    assert bench.watch.reading("GPU-a") == alone
    assert bench.watch.reading("GPU-z") == {}
    await bench.end()


@running
async def test_s38_a_silent_child_is_replaced() -> None:
    bench = Bench()
    bench.passes(1.0)
    await bench.says({})
    bench.passes(9.0)
    assert bench.watch.silent_s == 0.0
    bench.passes(2.0)
    assert bench.watch.silent_s == 11.0
    await until(lambda: len(bench.children) == 2)
    assert bench.watch.num_written_off == 0
    bench.passes(29.0)  # the new one has its own time to answer
    assert bench.children[1].alive
    await bench.says({"GPU-a": {}})
    assert bench.watch.silent_s == 0.0
    assert bench.exits == 1
    await bench.end()


@running
async def test_s38_a_child_that_ignores_its_end_is_written_off_and_one_at_most() -> (
    None
):
    bench = Bench(Stubborn, most=1)
    bench.passes(31.0)
    bench.passes(1.0)
    assert len(bench.children) == 1  # it has a moment to go
    bench.passes(1.5)
    assert len(bench.children) == 2
    assert bench.watch.num_written_off == 1
    bench.passes(31.0)
    bench.passes(3.0)
    bench.passes(60.0)
    assert len(bench.children) == 2  # no third one into the same trap
    assert bench.watch.silent_s > 60.0
    first = bench.children[0]
    assert isinstance(first, Stubborn)
    first.end()
    await until(lambda: bench.watch.num_written_off == 0)
    bench.passes(0.1)
    await until(lambda: len(bench.children) == 3)
    await bench.says({"GPU-a": {}})
    assert bench.watch.silent_s == 0.0
    await bench.end()


@running
async def test_a_watch_that_was_never_started_is_not_silent() -> None:
    bench = Bench()
    idle = GpuWatch(bench._reaper, bench._launch, set, bench._exited)
    idle.tick()
    assert idle.silent_s == 0.0
    await bench.end()
