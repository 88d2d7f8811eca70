"""What drivers say about the devices, and the orders that follow from it.

Supervisor; owns the evidence of each device. It hears the NVML child, last words and
deaths, and acts through the device slots. Nothing is ever reset, rebooted or reloaded
by us: the cure is named, and an operator says when it is done.

    report of the NVML child ─▶ Evidence ─▶ Verdict ─▶ kill | take_out | shown
    CUDA can't be used at this start ─▶ never: take_out with its cure
                                     └▶ later, perhaps: another life after a pause

Invariant: no call here waits for a driver; a device that is out stays out until
`reset_done`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ipc.errors import ClientError
from ipc.messages import Fault
from neurond import startups, xids
from neurond.deviceslot import DeviceSlot
from neurond.evidence import Evidence, Verdict
from neurond.faults import charges
from neurond.gpuwatch import Readings
from neurond.startups import Retry
from neurond.states import DeviceState
from neurond.xids import Cure, Measure, Sighting, XidClass

Facts = dict[str, Any]


class Hardware:
    """`note(kind, **fields)` tells an event, and that the facts are others.
    `silent_s`: for how long NVML has said nothing, 0 = it speaks. A `Witness`."""

    def __init__(  # noqa: PLR0913  its collaborators
        self,
        devices: Callable[[], Sequence[DeviceSlot]],
        *,
        note: Callable[..., None],
        silent_s: Callable[[], float],
        drain_s: float,
        problem: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._devices = devices
        self._note = note
        self._silent_s = silent_s
        self._drain_s = drain_s
        self._problem = problem
        self._clock = clock
        self._evidence: dict[str, Evidence] = {}
        self._readings: Readings = {}
        self._shown: dict[str, tuple[bool, str | None]] = {}
        self._draining: dict[str, tuple[float, str]] = {}
        self._excused: dict[str, tuple[int, str]] = {}
        self._unusable: dict[str, str] = {}
        self._waiting: dict[str, str] = {}
        self._was_silent = False

    # ---- what happens to devices

    def born(self, device: DeviceSlot) -> None:
        if device.has_said_hello:
            self._waiting.pop(device.name, None)
        self._of(device).born(device.generation, device.pid)

    def killed(self, device: DeviceSlot) -> None:
        self._of(device).killed(self._clock())

    def died(self, device: DeviceSlot) -> None:
        self._of(device).died(device.generation, self._clock())

    def faulted(self, device: DeviceSlot, fault: Fault) -> None:
        """Its last words: CUDA is unusable, or a fault in a step."""
        code = startups.code_of(fault.code, fault.chain)
        if code is not None and not device.has_said_hello:
            self._cannot_start(device, code)
        elif charges(fault.fault_class, fault.code, fault.chain):
            asked = frozenset(fault.requests)
            if self._of(device).faulted(asked, self._clock()):
                text = "faults again within an hour, with other requests"
                self._tell(device, "device.suspect", reason=text)

    def spares(self, device: DeviceSlot) -> str:
        """Why nobody pays for the end of its present life; empty: somebody may."""
        generation, why = self._excused.get(device.name, (0, ""))
        if why and generation == device.generation:
            return why
        return self._of(device).spares(device.generation, self._clock())

    # ---- what the NVML child and operators say

    def hear(self, readings: Readings, seen: list[tuple[str, Sighting]]) -> None:
        """A report: what each GPU shows, and the Xids since the last one, by uuid."""
        self._readings = readings
        by_uuid = {d.spec.uuid: d for d in self._devices() if d.spec.uuid}
        for uuid, sighting in seen:
            if uuid in by_uuid:
                self.saw(by_uuid[uuid], sighting)
        for uuid, device in by_uuid.items():
            if uuid in readings:
                self._read(device, readings[uuid])

    def saw(self, device: DeviceSlot, sighting: Sighting) -> None:
        """An Xid, real or simulated."""
        evidence = self._of(device)
        if device.pid is not None:
            evidence.born(device.generation, device.pid)
        verdict = evidence.saw(sighting, self._clock())
        if verdict is not None:
            self._act(device, verdict)

    def reset_done(self, name: str) -> None:
        """An operator did what the device waited for. Raises ClientError."""
        device = self._named(name)
        self._check_cured(device)
        self._of(device).cured()
        self._draining.pop(name, None)
        self._unusable.pop(name, None)
        self._shown.pop(name, None)
        self._tell(device, "device.reset_done")
        if device.state is DeviceState.FAILED:
            device.reset()

    def respawn(self, name: str) -> None:
        """An operator wants a new process. Raises ClientError."""
        device = self._named(name)
        if device.state is not DeviceState.FAILED:
            device.respawn("respawn was ordered")
        elif device.cure:
            command = f"cortexctl devices reset-done {name}"
            text = f"{name} waits for an operator: {device.cure}; then {command}"
            raise ClientError(text, param="device")
        else:
            device.reset()

    def tick(self) -> None:
        """Once per tick of the supervisor."""
        for device in self._devices():
            until_s, reason = self._draining.get(device.name, (0.0, ""))
            if reason and (_is_idle(device) or self._clock() >= until_s):
                self._take_out(device, reason, self._of(device).cure)
        is_silent = self._silent_s() > 0
        if is_silent and not self._was_silent:
            self._note("nvml.failed", reason="NVML is silent")
        if is_silent != self._was_silent:
            self._was_silent = is_silent

    # ---- what is

    def facts(self, device: DeviceSlot) -> Facts:
        """`suspect`: why its state can't be told; `reset_wanted`: what an operator
        should do some day; `xids`: the last ones, the oldest first."""
        evidence = self._of(device)
        wanted = max(evidence.cure, evidence.cure_wanted)
        offset_s = time.time() - self._clock()
        lines = [
            {"xid": s.xid, "what": s.what, "class": s.kind, "time_s": offset_s + s.at_s}
            for s in evidence.sightings.shown
        ]
        is_dark = device.spec.kind == "cuda" and self._silent_s() > 0
        silence = "NVML does not answer" if is_dark else ""
        return {
            "suspect": silence or self._waiting.get(device.name, ""),
            "reset_wanted": wanted.command,
            "xids": lines,
        }

    def cuda_problem(self) -> str:
        """Why no load can use CUDA; empty while a device may."""
        if len(self._unusable) < len(self._devices()):
            return ""
        return next(iter(self._unusable.values()), self._problem)

    def is_hopeless(self) -> bool:
        """Every device is out, and one that waits for no cure may come up again when
        the node does; where all wait, the node stays and says for what."""
        devices = self._devices()
        is_out = all(device.state is DeviceState.FAILED for device in devices)
        return is_out and any(not device.cure for device in devices)

    # ---- from verdicts to orders

    def _read(self, device: DeviceSlot, row: Mapping[str, Any]) -> None:
        """What a GPU shows is told once, when it begins to."""
        shows = (bool(row.get("lost")), row.get("remap"))
        before = self._shown.get(device.name, (False, None))
        self._shown[device.name] = shows
        if shows[0] and not before[0]:
            self.saw(device, Sighting(xids.OFF_THE_BUS))
        if shows[1] and shows[1] != before[1]:
            is_failed = shows[1] == "failed"
            number = xids.REMAP_FAILED if is_failed else xids.REMAP_RECORDED
            self.saw(device, Sighting(number))
        action = row.get("recovery_action")
        if action is not None:
            verdict = self._of(device).recovery(action)
            if verdict is not None:
                self._act(device, verdict)

    def _act(self, device: DeviceSlot, verdict: Verdict) -> None:
        if verdict.is_news or verdict.measure is not Measure.WATCH:
            self._tell(
                device,
                "device.xid",
                reason=verdict.reason,
                fault=str(verdict.kind),
                measure=verdict.measure.name.lower(),
                cure=verdict.cure.command,
            )
        match verdict.measure:
            case Measure.RESPAWN | Measure.GROUP:
                self._end_life(device, verdict)
            case Measure.DRAIN_OUT:
                is_urgent = verdict.kind is XidClass.ECC
                until_s = self._clock() + self._drain_s if is_urgent else math.inf
                self._draining[device.name] = (until_s, verdict.reason)
            case Measure.OUT:
                self._take_out(device, verdict.reason, verdict.cure)
            case Measure.WATCH:
                pass

    def _end_life(self, device: DeviceSlot, verdict: Verdict) -> None:
        """Only an application's own fault may charge whoever ran."""
        if verdict.kind is not XidClass.APP:
            self._excused[device.name] = (device.generation, verdict.reason)
        device.kill(verdict.reason)

    def _take_out(self, device: DeviceSlot, reason: str, cure: Cure) -> None:
        self._draining.pop(device.name, None)
        self._excused[device.name] = (device.generation, reason)
        device.take_out(f"{reason}; {cure.command}", cure.command)

    def _cannot_start(self, device: DeviceSlot, code: int) -> None:
        row = startups.STARTUPS[code]
        reason = f"CUDA error {code}: {row.what}"
        self._tell(device, "device.cuda_failed", reason=reason, cure=row.cure)
        if row.retry is Retry.NEVER:
            self._unusable[device.name] = f"{reason}; {row.cure}"
            device.take_out(f"{reason}; {row.cure}", row.cure)
        else:
            self._waiting[device.name] = f"{reason}; {row.cure}"
            is_patient = row.retry is Retry.PATIENT
            device.expects(self._waiting[device.name], is_patient=is_patient)

    def _check_cured(self, device: DeviceSlot) -> None:
        """The driver's word counts for more than an operator's. Raises ClientError."""
        row = {} if self._silent_s() else self._readings.get(device.spec.uuid, {})
        action = row.get("recovery_action") or 0
        _, cure = xids.recovery(action)
        if cure is not Cure.NONE:
            text = f"the driver still asks of {device.name}: {cure.command}"
            raise ClientError(text, param="device")
        if device.state is DeviceState.FAILED or self._of(device).cure_wanted:
            return
        raise ClientError(f"{device.name} waits for no reset", param="device")

    # ---- small things

    def _named(self, name: str) -> DeviceSlot:
        """Raises ClientError."""
        device = next((d for d in self._devices() if d.name == name), None)
        if device is None:
            raise ClientError(f"there is no device {name}", param="device")
        return device

    def _of(self, device: DeviceSlot) -> Evidence:
        return self._evidence.setdefault(device.name, Evidence())

    def _tell(self, device: DeviceSlot, kind: str, **fields: str) -> None:
        told = {name: value for name, value in fields.items() if value}
        self._note(kind, device=device.name, generation=device.generation, **told)


def _is_idle(device: DeviceSlot) -> bool:
    view = device.view()
    return view is None or not view.gauges["running"] + view.gauges["waiting"]
