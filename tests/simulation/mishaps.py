"""Makes what a plan says go wrong go wrong."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ipc.errors import ClientError
from ipc.messages import Inject
from neurond.deviceslot import DeviceSlot
from neurond.states import DeviceState
from neurond.xids import Sighting
from tests.simulation.plan import Mishap

if TYPE_CHECKING:
    from tests.simulation.device import Child
    from tests.simulation.world import World

_REPAIR_S = 1.0


class Mishaps:
    """`fork`, `boot`, `load`: what the next lives of a device meet."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.forks: Counter[str] = Counter()
        self.boots: Counter[str] = Counter()
        self.loads: dict[str, str] = {}
        self.wrongs: set[str] = set()
        for mishap in world.plan.mishaps:
            world.loop.call_later(mishap.at_s, self._happen, mishap)

    def boot_s(self, child: Child) -> float:
        if self.boots[child.name]:
            self.boots[child.name] -= 1
            return 30.0
        return self._world.chance.uniform(0.01, 0.2)

    def before_reload(self, slot: DeviceSlot) -> None:
        """A device that has answered rightly before may answer wrongly now."""
        name, world = slot.name, self._world
        child = world.child(name)
        if name in self.wrongs and name in world.node.has_loaded and child is not None:
            self.wrongs.discard(name)
            child.is_wrong = bool(world.node.lifecycle.placement.on(slot))
            slot.send(Inject("wrong_result", 0, 0, 1))

    def _happen(self, mishap: Mishap) -> None:
        world = self._world
        if mishap.kind == "worker":
            world.replace_worker(mishap.where)
            return
        name = world.plan.devices[mishap.where]
        world.trace(name, f"mishap: {mishap.kind} {mishap.detail} {mishap.count or ''}")
        child = world.child(name)
        if child is not None and child.is_alive:
            self._strike(child, mishap.kind)
        match mishap.kind:
            case "fork":
                self.forks[name] += mishap.count
            case "boot":
                self.boots[name] += 1
            case "load":
                self.loads[name] = mishap.detail
            case "wrong":
                self.wrongs.add(name)
            case "xid":
                self._xid(name, int(mishap.detail))
            case "respawn":
                self._respawn(name)
            case "inject":
                self._inject(name, mishap)

    def _strike(self, child: Child, kind: str) -> None:
        if kind == "kill":
            if not child.is_still:  # else it had ended before
                child.cause = child.cause or "outside"
            child.kill()
        elif kind in ("stop", "immortal"):
            child.is_immortal = kind == "immortal"
            child.stand_still()

    def _inject(self, name: str, mishap: Mishap) -> None:
        world = self._world
        slot = world.node.slot(name)
        if not slot.has_said_hello:
            return
        ids = sorted(world.judge.running(name))
        request = ids[mishap.count % len(ids)] if ids and mishap.count % 3 == 0 else 0
        world.judge.injected(name, mishap.detail)
        slot.send(Inject(mishap.detail, mishap.count, request, 1))

    def _xid(self, name: str, number: int) -> None:
        world = self._world
        pid = world.chance.choice((None, world.node.slot(name).pid))
        world.node.hardware.saw(world.node.slot(name), Sighting(number, pid=pid))
        world.loop.call_later(_REPAIR_S, self._repair, name)

    def _repair(self, name: str) -> None:
        """An operator did what was asked."""
        try:
            self._world.node.hardware.reset_done(name)
        except ClientError:
            pass

    def _respawn(self, name: str) -> None:
        slot = self._world.node.slot(name)
        if slot.state is not DeviceState.FAILED:
            self._world.node.hardware.respawn(name)
