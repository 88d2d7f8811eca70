"""What one seed asks for: a node, its clients, what goes wrong and when."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

FAULTY_S = 5.0
"""Nothing goes wrong after that."""
KILLERS = ("segv", "abort", "hang", "device_assert", "oomkill")
INJECTED = (
    *("slow", "nan", "shape", "oom", "device_assert", "illegal_access", "ecc"),
    *("hang", "sigkill", "segv", "abort", "wrong_result"),
)
XIDS = (13, 31, 43, 45, 48, 63, 64, 74, 79, 94, 119)


@dataclass(frozen=True, slots=True)
class Wish:
    """One client's request. `poison`: the directive that kills devices, "" = none.

    `stays`: frames after which it goes away, 0 = never; `reads_s`: its pause between
    two frames.
    """

    number: int
    at_s: float
    model: str
    num_tokens: int
    max_tokens: int
    num_choices: int
    stops: tuple[str, ...]
    streams: bool
    poison: str
    attempts: int
    fault_at: int
    stays: int
    reads_s: float
    padding: int

    @property
    def text(self) -> str:
        words = f"tokens={self.num_tokens}"
        if self.poison:
            kind = "sigkill" if self.poison == "oomkill" else self.poison
            words += f" fault={kind} at={self.fault_at} attempts={self.attempts}"
        return f"[[fake {words}]] request {self.number} " + "x" * self.padding

    @property
    def kills_for_ever(self) -> bool:
        return bool(self.poison) and self.attempts > 5


@dataclass(frozen=True, slots=True)
class Mishap:
    """`kind`: see `Mishaps`; `where`: a device or a worker; `detail`: as it needs."""

    at_s: float
    kind: str
    where: int
    detail: str = ""
    count: int = 0


@dataclass(slots=True)
class Plan:
    devices: list[str]
    models: list[str]
    num_workers: int
    ring_room: int
    settings: dict[str, Any]
    options: dict[str, Any]
    wishes: list[Wish]
    mishaps: list[Mishap] = field(default_factory=list)
    breaks: bool = False


def plan_of(chance: Random) -> Plan:
    num_devices = chance.choice((1, 1, 2, 2, 3))
    models = [f"m{n}" for n in range(chance.choice((1, 1, 2)))]
    is_calm = chance.random() < 0.1
    num_poisons = 0 if is_calm else chance.choice((0, 0, 0, 1, 1, 2))
    is_crowd = chance.random() < 0.06
    num_wishes = chance.randint(12, 16) if is_crowd else chance.randint(3, 9)
    if is_crowd:
        num_poisons = 1
    poisoned = set(chance.sample(range(num_wishes), num_poisons))
    plan = Plan(
        devices=[f"fake-{n}" for n in range(num_devices)],
        models=models,
        num_workers=chance.choice((1, 2)),
        ring_room=chance.choice((3, 16, 64)),
        settings=_settings(chance),
        options=_options(chance),
        wishes=[
            _wish(
                chance, number, models[:1] if is_crowd else models, number in poisoned
            )
            for number in range(num_wishes)
        ],
    )
    if is_crowd:
        _crowd(plan)
    elif not is_calm:
        count = chance.choice((0, 1, 1, 2, 2, 3, 4))
        plan.mishaps = sorted(
            (_mishap(chance, plan) for _ in range(count)), key=lambda m: m.at_s
        )
        plan.breaks = chance.random() < 0.1
    return plan


def _crowd(plan: Plan) -> None:
    """All at once and for long, so that a step has more requests than groups."""
    plan.settings["max_running"], plan.ring_room = 16, 6
    plan.settings["prefill_chunk"] = 512
    plan.options = {}
    plan.wishes = [
        replace(
            wish,
            at_s=0.5 + 0.005 * wish.number,
            num_tokens=30,
            max_tokens=30,
            num_choices=1,
            stops=(),
            fault_at=8,
            poison="segv" if wish.poison else "",
            attempts=99,
            stays=0,
        )
        for wish in plan.wishes
    ]


def _settings(chance: Random) -> dict[str, Any]:
    return {
        "max_running": chance.choice((2, 4, 16)),
        "max_queue": 64,
        "prefill_chunk": chance.choice((16, 512)),
        "queue_deadline_s": 30.0,
        "boot_deadline_s": 2.0,
        "load_deadline_s": 2.0,
        "prefill_deadline_s": 2.0,
        "decode_deadline_s": 1.0,
        "probe_deadline_s": 1.0,
        "injection": True,
        "probe_every_s": chance.choice((0.0, 1.0)),
    }


def _options(chance: Random) -> dict[str, Any]:
    options: dict[str, Any] = {"prefill_ms": 1, "step_ms": 1}
    if chance.random() < 0.4:
        options |= {"pages": chance.choice((20, 28)), "page_bytes": 1, "page_tokens": 8}
    if chance.random() < 0.2:
        options |= {"state_bytes": 1}
    return options


def _wish(chance: Random, number: int, models: list[str], is_poison: bool) -> Wish:
    num_tokens = chance.choice((1, 4, 10, 20, 30))
    return Wish(
        number=number,
        at_s=chance.uniform(0.1, 2.5),
        model=chance.choice(models),
        num_tokens=num_tokens,
        max_tokens=chance.choice((num_tokens, num_tokens + 5, max(1, num_tokens // 2))),
        num_choices=1 if is_poison else chance.choice((1, 1, 1, 2)),
        stops=chance.choice(((), (), (), ("w3",), ("w1 w2",))),
        streams=chance.random() < 0.7,
        poison=chance.choice(KILLERS) if is_poison else "",
        attempts=chance.choice((1, 99, 99)),
        fault_at=chance.randint(0, max(0, min(3, num_tokens - 1))),
        stays=chance.randint(1, 6) if chance.random() < 0.1 else 0,
        reads_s=chance.choice((0.0, 0.0, 0.0, 0.05)),
        padding=chance.choice((0, 0, 20)),
    )


def _mishap(chance: Random, plan: Plan) -> Mishap:
    at_s = chance.uniform(0.0, FAULTY_S)
    kind = chance.choice(_KINDS)
    where = chance.randrange(len(plan.devices))
    if kind == "inject":
        return Mishap(at_s, kind, where, chance.choice(INJECTED), chance.randint(0, 12))
    if kind == "xid":
        return Mishap(at_s, kind, where, str(chance.choice(XIDS)))
    if kind == "load":
        return Mishap(at_s, kind, where, chance.choice(("hang", "segv", "sigkill")))
    if kind == "fork":
        return Mishap(at_s, kind, where, count=chance.randint(1, 3))
    if kind == "worker":
        where = chance.randrange(plan.num_workers)
    return Mishap(at_s, kind, where)


_KINDS = (
    *("kill", "kill", "kill", "inject", "inject", "inject", "inject", "stop", "xid"),
    *("wrong", "respawn", "load", "boot", "fork", "worker", "immortal"),
)
