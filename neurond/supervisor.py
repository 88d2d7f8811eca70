"""`neurond: supervisor`: starts the node's processes, watches them, says what is.

Single-threaded, without torch, HTTP or request data. Owns the device slots, the model
records, the listening sockets, control.sock and attach.sock, the event log and the
desired state; acts from one loop with one tick.

    device dies ─▶ workers hear `down` ─▶ respawn ─▶ its models load ─▶ `up`
    any other child dies ─▶ it is started again; devices and streams go on
    SIGTERM ─▶ frontend drains ─▶ devices stop ─▶ the rest ends ─▶ exit 0

Invariant: every wait has a deadline, every child is watched, and when this process dies
all of them do.
"""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

from ipc.bugs import run_until
from ipc.child import (
    EXIT_OK,
    EXIT_PERMANENT,
    EXIT_RESTART,
    Exit,
    Reaper,
    become_subreaper,
)
from ipc.errors import ClientError
from ipc.keeper import Keeper, end
from ipc.systemd import notify
from neurond import loadorder
from neurond.chronicle import Chronicle
from neurond.composition import (
    Given,
    attach_of,
    device_of,
    forker_of,
    hardware_of,
    lifecycle_of,
)
from neurond.converter import Converter
from neurond.deviceevents import DeviceEvents
from neurond.documents import Documents
from neurond.effects import Effects
from neurond.gpuwatch import GpuWatch
from neurond.injecting import Injector
from neurond.lifecycle import Lifecycle
from neurond.operators import Operators, Orders
from neurond.publishing import Publisher
from neurond.quarantine import Quarantine
from neurond.rings import Rings
from neurond.stopping import stop_devices

TICK_S = 0.25
_LATE_TICKS = 4
_DEVICE_STOP_S = 5.0
_CUT_S = 6.0
_LAST_S = 2.0

Facts = dict[str, Any]


class Supervisor:
    def __init__(self, given: Given) -> None:
        self._given = given
        self._config = given.config
        self._journal = given.journal
        self._loop = asyncio.get_running_loop()
        self._is_stopping = False
        self._exit_code = EXIT_OK
        self._wanted_stop = asyncio.Event()
        self._restarts = {"zygote": 0, "frontend": 0, "metrics": 0, "nvml": 0}
        self._reaper = Reaper(self._loop)
        self._chronicle = Chronicle(
            given.journal, given.events, lambda event: self._operators.tell_event(event)
        )
        self._note = self._chronicle.note
        self._forker = forker_of(given, self._reaper, self._zygote_died)
        self._lifecycle = self._make_lifecycle()
        self._rings = Rings(lambda: self._devices, self._journal)
        self._quarantine = Quarantine(self._config.limits.quarantine_s)
        is_allowed = self._config.faults.injection
        self._injector = Injector(lambda: self._devices, is_allowed=is_allowed)
        self._hardware = hardware_of(
            given, lambda: self._devices, self._note, lambda: self._gpus.silent_s
        )
        self._injector.on_xid = self._hardware.saw
        self._device_events = self._make_events()
        owner = self._device_events.owner()
        self._devices = [
            device_of(given, spec, owner, self._forker, self._reaper)
            for spec in given.specs
        ]
        launch = given.launch
        self._frontend = Keeper("frontend", launch.frontend, self._reaper, self._exited)
        self._metrics = Keeper("metrics", launch.metrics, self._reaper, self._exited)
        self._gpus = GpuWatch(
            self._reaper,
            launch.nvml,
            self._device_pids,
            self._exited,
            hear=self._hardware.hear,
            most_written_off=len(self._devices),
        )
        self._documents = Documents(
            given,
            self._devices,
            self._lifecycle,
            self._gpus,
            self._hardware,
            self._quarantine,
            self._restarts,
        )
        self._operators = self._make_operators()
        self._attach = attach_of(given, self._rings, self._device_events.quarantined)
        self._publisher = Publisher(self._documents.facts, self._operators.tell_state)

    # ---- composition

    def _make_events(self) -> DeviceEvents:
        return DeviceEvents(
            self._rings,
            self._lifecycle,
            self._chronicle,
            changed=self._changed,
            on_failed=self._give_up_if_hopeless,
            before_reload=self._injector.before_reload,
            reading=lambda uuid: self._gpus.reading(uuid),
            quarantine=self._quarantine,
            witness=self._hardware,
        )

    def _make_lifecycle(self) -> Lifecycle:
        limits = self._config.limits
        converter = Converter(
            self._forker, self._reaper, deadline_s=limits.load_deadline_s
        )
        return lifecycle_of(
            self._given,
            Effects(
                devices=lambda: self._devices,
                converter=converter,
                cache=self._given.launch.folders.cache,
                note=self._note,
                changed=self._changed,
                cuda_problem=lambda: self._hardware.cuda_problem(),
            ),
        )

    def _make_operators(self) -> Operators:
        desired = self._given.desired
        orders = Orders(
            state=self._documents.facts,
            metrics=self._figures,
            lifecycle=self._lifecycle,
            want=lambda record: desired.want(record.spec.id, record.ordered),
            release=desired.release,
            respawn=self._hardware.respawn,
            reset_done=self._hardware.reset_done,
            injector=self._injector,
            stop=self._wanted_stop.set,
        )
        control = self._given.listeners.control
        return Operators(control, orders, self._config, self._given.events)

    # ---- the life of the node

    async def run(self) -> int:
        """Until SIGTERM; the exit code."""
        become_subreaper()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._asked_to_stop)
        self._loop.add_signal_handler(signal.SIGHUP, self._refuse_reload)
        self._start()
        ticking = self._loop.create_task(self._tick())
        await run_until(self._wanted_stop, [ticking])
        await self._stop()
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)
        self._close()
        return self._exit_code

    def _start(self) -> None:
        """Listeners first, models last: they show as loading meanwhile (S33)."""
        self._operators.start(self._loop)
        self._attach.start(self._loop)
        self._forker.start()
        for device in self._devices:
            device.spawn()
        for keeper in (self._frontend, self._metrics):
            keeper.start()
        if any(device.spec.kind == "cuda" for device in self._devices):
            self._gpus.start()
        self._note("node.started")
        self._load_desired()
        notify(READY=1, STATUS="starting")

    def _load_desired(self) -> None:
        wanted = self._given.desired.wanted(self._config.models.default)
        for model, order in wanted.items():
            try:
                self._lifecycle.load(model, loadorder.checked(order))
            except ClientError as error:
                self._lifecycle.refuse(model, error)

    async def _tick(self) -> None:
        last_s = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            now_s = time.monotonic()
            late = now_s - last_s > _LATE_TICKS * TICK_S
            last_s = now_s
            for device in self._devices:
                device.tick(late=late)
            self._gpus.tick()
            self._hardware.tick()
            self._reaper.reap_orphans()
            self._publisher.tick(now_s)
            self._journal.flush()
            notify(WATCHDOG=1)

    # ---- what is

    def _figures(self) -> Facts:
        children = {"zygote": self._forker.pid}
        children |= {k.name: k.pid for k in (self._frontend, self._metrics)}
        return self._documents.figures(children)

    def _device_pids(self) -> set[int]:
        return {device.pid for device in self._devices if device.pid is not None}

    def _changed(self) -> None:
        self._publisher.soon()

    # ---- what happens

    def _give_up_if_hopeless(self) -> None:
        """The last rung: a new start may have more luck (S13)."""
        if self._hardware.is_hopeless() and not self._is_stopping:
            self._journal.error("every device was taken out", event="node.hopeless")
            self._exit_code = EXIT_RESTART
            self._wanted_stop.set()

    def _zygote_died(self, how: Exit | OSError) -> None:
        self._child_died("zygote", how)

    def _exited(self, keeper: Keeper, how: Exit | OSError) -> None:
        self._child_died(keeper.name, how)

    def _child_died(self, name: str, how: Exit | OSError) -> None:
        if self._is_stopping:
            return
        self._restarts[name] += 1
        self._note(f"{name}.died", reason=str(how))
        if isinstance(how, Exit) and how.meaning == "permanent":
            self._exit_code = EXIT_PERMANENT
            self._wanted_stop.set()

    def _refuse_reload(self) -> None:
        words = "SIGHUP is ignored: the configuration is read at a start only"
        self._journal.warning(words, event="node.reload")

    # ---- the end

    def _asked_to_stop(self) -> None:
        """The second time, who drains is cut off."""
        if self._is_stopping:
            self._frontend.stop(signal.SIGKILL)
        self._wanted_stop.set()

    async def _stop(self) -> None:
        self._is_stopping = self._device_events.is_stopping = True
        self._documents.is_stopping = True
        notify(STOPPING=1, STATUS="stopping")
        self._note("node.stopping")
        self._publisher.now()
        self._given.launch.sockets.http.close()  # else connections queue for nobody
        await self._lifecycle.stop()
        await end([self._frontend], self._config.limits.drain_s + _CUT_S)
        await stop_devices(self._devices, _DEVICE_STOP_S)
        others = [self._metrics]
        if self._gpus.keeper.pid is not None:
            others.append(self._gpus.keeper)
        await end(others, _LAST_S)
        await self._forker.stop()

    def _close(self) -> None:
        self._publisher.close()
        self._attach.close()
        self._operators.close()
        self._gpus.close()
        self._reaper.close()
        self._journal.close()
        self._given.launch.sockets.metrics.close()
