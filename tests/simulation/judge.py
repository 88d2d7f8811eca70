"""What must hold whatever happens, and what excuses an error.

Safety: nothing shown is wrong (`client`), nobody is computed by two processes, a step
has one group, only who was alone in a step on trial is convicted, a request that kills
is found before it kills often. Liveness is the world's.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Sequence as Listing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ipc.child import Exit
from ipc.errors import ServiceError
from ipc.messages import Submit
from ipc.status import Phase
from neurond.device.backend import Work
from tests.simulation.client import Client, prompt_of
from tests.simulation.worker import RESUME_DEADLINE_S

if TYPE_CHECKING:
    from tests.simulation.device import Child
    from tests.simulation.plan import Wish
    from tests.simulation.world import World

MOST_KILLS = 3
"""One among many, one among two, one alone; a batch is no larger than sixteen."""
_ROWS = {"nan": "nan_logits", "shape": "internal_error", "oom": "insufficient_vram"}
_RECOVERED_S = 5.0
_DETACHED_S = 1.5
_LOST = "the request was lost between front end and device"


@dataclass(frozen=True, slots=True)
class Death:
    at_s: float
    device: str
    end: Exit
    phase: Phase
    ids: tuple[int, ...]


class Judge:
    def __init__(self, world: World) -> None:
        self._world = world
        self.violations: list[str] = []
        self.deaths: list[Death] = []
        self.kills: Counter[int] = Counter()
        self.num_resumed = 0
        self.num_convicted = 0
        self.num_born = 0
        self._owners: dict[int, Child] = {}
        self._last: dict[str, Child] = {}
        self._wishes: dict[tuple[int, ...], Wish] = {}
        self._convicted: set[int] = set()
        self._injected: Counter[str] = Counter()
        self._row_errors: Counter[str] = Counter()

    def violate(self, text: str) -> None:
        self._world.trace("VIOLATION", text)
        self.violations.append(text)

    def know(self, client: Client) -> None:
        self._wishes[client.order.submit.ids] = client.wish

    # ---- devices

    def born(self, child: Child) -> None:
        self.num_born += 1
        self._last[child.name] = child
        self._world.trace(child.name, f"process {child.pid} of life {child.generation}")

    def step(self, child: Child, works: Listing[Work]) -> None:
        self._world.trace(
            child.name,
            "step " + " ".join(f"{w.sequence.id}:{w.num_ids}" for w in works),
        )
        groups = {work.sequence.trial_group for work in works}
        if len(groups) > 1:
            self.violate(f"{child.name}: groups {groups} in one step")
        if child.is_wrong:
            self.violate(f"{child.name} computes wrongly and serves")
        for work in works:
            number = work.sequence.id
            self._check_worker(child, number)
            other = self._owners.get(number)
            if other is not None and other is not child and _computes(other, number):
                self.violate(f"{number} is computed on {other.name} and {child.name}")
            self._owners[number] = child

    def _check_worker(self, child: Child, number: int) -> None:
        died_s = self._world.dead_workers.get(number // 1000)
        if died_s is not None and self._world.clock() > died_s + _DETACHED_S:
            self.violate(f"{child.name} computes {number}, whose worker is gone")

    def charged(self, device: str, charged: tuple[object, ...]) -> None:
        """A life ended, and these pay for it."""
        child = self._last.get(device)
        if child is not None and child.is_alive:  # written off
            self.died(child, Exit(None, None))
        if charged and child is not None and child.cause in ("outside", "sigkill"):
            self.violate(f"{charged} pay for a kill of {device} from outside")

    def fires(self, child: Child, kind: str) -> None:
        """A script ends the process."""
        for number in child.backend.step:
            sequence = child.backend.present[number]
            wish = self._wishes.get(prompt_of(sequence.submit))
            if wish is not None and wish.poison and _is_due(wish, sequence.num_emitted):
                self.kills[number] += 1
                self._world.trace(child.name, f"{number} kills it: {kind}")
                if self.kills[number] > MOST_KILLS + self._num_spared():
                    self.violate(f"{number} killed {self.kills[number]} devices")
                return

    def _num_spared(self) -> int:
        """Deaths that charge nobody, as somebody else killed, ordered or excused."""
        mishaps = self._world.plan.mishaps
        return sum(m.kind in ("kill", "respawn", "xid", "inject") for m in mishaps)

    def died(self, child: Child, end: Exit) -> None:
        self._world.trace(child.name, f"process {child.pid} is gone: {end}")
        view = child.process.view()
        at_s = self._world.clock()
        death = Death(at_s, child.name, end, view.phase, view.requests)
        self.deaths.append(death)

    def running(self, device: str) -> set[int]:
        child = self._world.child(device)
        return set(child.backend.present) if child is not None else set()

    def injected(self, _device: str, kind: str) -> None:
        self._injected[kind] += 1

    # ---- requests

    def resumed(self, submit: Submit) -> None:
        self.num_resumed += 1
        told = len(submit.ids) - submit.num_prompt
        group = f", group {submit.trial_group}" if submit.trial_group else ""
        text = f"submitted again, attempt {submit.attempt}, {told} tokens{group}"
        self._world.trace(f"request {submit.id}", text)

    def convicted(self, submit: Submit) -> None:
        self.num_convicted += 1
        self._world.trace(f"request {submit.id}", "convicted")
        self._convicted.add(submit.id)
        alone = [
            death
            for death in self.deaths
            if death.phase is Phase.TRIAL and death.ids == (submit.id,)
        ]
        if not alone:
            self.violate(f"{submit.id} is convicted and was never alone")
        elif all(death.end.signal == signal.SIGKILL for death in alone):
            wish = self._wishes.get(prompt_of(submit))
            was_hung = self._injected["hang"] or (wish is not None and wish.poison)
            if not was_hung:
                self.violate(f"{submit.id} is convicted for a kill from outside")

    def failed(self, client: Client, error: ServiceError) -> None:
        if not self._is_explained(client, error):
            told = f"{error.code} ({error.message}), which nothing explains"
            self.violate(f"{client.who} ends with {told}")

    def _is_explained(self, client: Client, error: ServiceError) -> bool:
        """Whether something happened that may end a request so."""
        waited_s = self._world.clock() - client.began_s
        match error.code:
            case "request_quarantined":
                return bool(client.wish.poison or self._convicted)
            case "nan_logits" | "internal_error" | "insufficient_vram":
                return error.message != _LOST and self._is_injected(error.code)
            case "device_fault" | "overloaded":
                return waited_s >= RESUME_DEADLINE_S and not self._is_served(client)
            case "device_failed" | "no_healthy_node":
                return self._is_lost(client)
            case "model_recovering" | "model_loading" | "queue_full":
                return not client.is_committed
        return False

    def _is_injected(self, code: str) -> bool:
        """No more of these than were ordered."""
        self._row_errors[code] += 1
        kinds = [kind for kind, told in _ROWS.items() if told == code]
        return self._row_errors[code] <= sum(self._injected[kind] for kind in kinds)

    def _is_served(self, client: Client) -> bool:
        """Its model has had a device for a while."""
        node = self._world.node
        record = node.lifecycle.records[client.wish.model]
        last_s = max((death.at_s for death in self.deaths), default=0.0)
        is_up = any(node.slot(name).is_up for name in record.devices)
        return is_up and self._world.clock() > last_s + _RECOVERED_S

    def _is_lost(self, client: Client) -> bool:
        node = self._world.node
        record = node.lifecycle.records[client.wish.model]
        return node.was_out or record.error is not None


def _computes(child: Child, number: int) -> bool:
    return child.is_alive and not child.is_still and number in child.backend.present


def _is_due(wish: Wish, num_emitted: int) -> bool:
    return num_emitted == wish.fault_at
