"""Faults on order, from control.sock to a device.

Supervisor. Refused unless `[faults] injection` is on. The device counts the steps and
does it; two kinds are ours:

    wrong_result   is of a load, so it goes to the device's next process, at its hello
    xid:N          is what the driver would have reported of the device; with
                   ",recovery=N", ",pid=N" and ",others" as `xids.told` has them

Invariant: nothing is sent that a device doesn't know, and nothing to one that is away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from ipc.errors import ClientError, error_for
from ipc.messages import Inject
from ipc.status import Phase
from neurond.device.injection import KINDS
from neurond.deviceslot import DeviceSlot
from neurond.xids import Sighting, told

Facts = dict[str, Any]

_NEXT_LIFE = "wrong_result"
_XID = "xid:"
_MOST_STEPS = 1 << 40
_MOST_TIMES = 1 << 20
_MAX_ID = (1 << 64) - 1
_MAX_XID = 1 << 16


class Injector:
    """`on_xid` is told of an Xid that a device is to have had."""

    def __init__(
        self, devices: Callable[[], Iterable[DeviceSlot]], *, is_allowed: bool
    ) -> None:
        self.on_xid: Callable[[DeviceSlot, Sighting], None] = lambda *_seen: None
        self._devices = devices
        self._is_allowed = is_allowed
        self._next_life: Counter[str] = Counter()

    def faults(self) -> Facts:
        """What can be simulated, and where a device may be when it happens."""
        kinds = [{"kind": kind, "what": what} for kind, what in KINDS.items()]
        xid = {"kind": "xid:N", "what": "the driver reports Xid N of the device"}
        return {
            "injection": self._is_allowed,
            "kinds": [*kinds, xid],
            "points": [phase.name.lower() for phase in Phase],
        }

    def inject(self, args: Mapping[str, Any]) -> Facts:
        """Raises ClientError."""
        if not self._is_allowed:
            words = "faults are simulated only where [faults] injection is true"
            raise error_for("insufficient_permissions", words)
        device = self._device(args)
        kind = str(args.get("kind", ""))
        order = Inject(
            kind,
            at_step=_number(args, "at_step", 1, _MOST_STEPS),
            request=_number(args, "request", 0, _MAX_ID),
            times=_number(args, "times", 1, _MOST_TIMES),
        )
        if kind.startswith(_XID):
            self.on_xid(device, _sighting(kind, device.pid))
        elif kind not in KINDS:
            words = f"{kind!r} can't be simulated; one of {', '.join(KINDS)}, xid:N can"
            raise ClientError(words, param="kind")
        elif kind == _NEXT_LIFE:
            self._next_life[device.name] += order.times
        else:
            device.send(order)
        return {"device": device.name, "generation": device.generation, "kind": kind}

    def before_reload(self, device: DeviceSlot) -> None:
        """A new process is about to be told what to load."""
        times = self._next_life.pop(device.name, 0)
        if times:
            device.send(Inject(_NEXT_LIFE, times=times))

    def _device(self, args: Mapping[str, Any]) -> DeviceSlot:
        name = str(args.get("device", ""))
        device = next((d for d in self._devices() if d.name == name), None)
        if device is None:
            raise ClientError(f"there is no device {name}", param="device")
        if not device.has_said_hello:
            words = f"device {name} is {device.state}: {device.reason}"
            raise error_for("device_fault", words)
        return device


def _number(args: Mapping[str, Any], name: str, default: int, most: int) -> int:
    value = args.get(name, default)
    if type(value) is not int or not 0 <= value <= most:
        raise ClientError(f"{name} must be 0 to {most}", param=name)
    return value


def _sighting(kind: str, pid: int | None) -> Sighting:
    """Of the device's own process, unless told otherwise."""
    try:
        sighting = told(kind)
    except ValueError as error:
        raise ClientError(str(error), param="kind") from error
    if not 0 < sighting.xid < _MAX_XID:
        raise ClientError("xid:N wants the number of an Xid", param="kind")
    is_told = sighting.pid is not None or sighting.others
    return sighting if is_told else replace(sighting, pid=pid)
