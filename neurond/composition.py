"""The supervisor's parts, made from what the node was started with.

Supervisor, once at its start. Here stands which part gets which number of the
configuration; the supervisor says whom they call back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ipc.attach import AttachServer, WorkerLink
from ipc.attachwire import Quarantine
from ipc.child import Exit, Reaper
from ipc.eventlog import EventLog
from ipc.journal import Journal
from ipc.peer import is_operator
from neurond.config import Config
from neurond.desired import Desired
from neurond.devicelife import Deadlines
from neurond.deviceowner import Owner
from neurond.deviceslot import DeviceSlot
from neurond.discovery import DeviceSpec
from neurond.effects import Effects
from neurond.forker import Forker
from neurond.hardware import Hardware
from neurond.launch import Launch
from neurond.lifecycle import Lifecycle
from neurond.rings import Rings
from neurond.sources import known_models
from neurond.unixlisteners import Listeners

_LOCAL_PEERS = 4
"""Clients of attach.sock beside our workers, old and new."""


@dataclass(frozen=True, slots=True)
class Given:
    """What the node was started with."""

    config: Config
    launch: Launch
    listeners: Listeners
    journal: Journal
    events: EventLog
    desired: Desired
    specs: Sequence[DeviceSpec]
    cuda_problem: str


def forker_of(
    given: Given, reaper: Reaper, on_died: Callable[[Exit | OSError], None]
) -> Forker:
    kinds = {spec.kind for spec in given.specs}
    return Forker(
        reaper,
        given.journal,
        preload="none" if kinds <= {"fake"} else "torch",
        use_zygote=given.config.devices.spawn == "zygote",
        on_died=on_died,
    )


def device_of(
    given: Given, spec: DeviceSpec, owner: Owner, forker: Forker, reaper: Reaper
) -> DeviceSlot:
    settings, limits = given.launch.device_settings(), given.config.limits
    if spec.kind == "cuda":
        settings["environ"] = {"CUDA_VISIBLE_DEVICES": spec.uuid}
    return DeviceSlot(
        spec,
        settings,
        owner,
        forker,
        reaper,
        Deadlines(limits.boot_deadline_s, limits.load_deadline_s),
    )


def hardware_of(
    given: Given,
    devices: Callable[[], Sequence[DeviceSlot]],
    note: Callable[..., None],
    silent_s: Callable[[], float],
) -> Hardware:
    return Hardware(
        devices,
        note=note,
        silent_s=silent_s,
        drain_s=given.config.limits.drain_s,
        problem=given.cuda_problem,
    )


def lifecycle_of(given: Given, effects: Effects) -> Lifecycle:
    limits = given.config.limits
    return Lifecycle(
        known_models(given.config),
        effects,
        load_deadline_s=limits.load_deadline_s,
        drain_s=limits.drain_s,
    )


def attach_of(
    given: Given,
    rings: Rings,
    on_quarantine: Callable[[WorkerLink, Quarantine], None],
) -> AttachServer:
    return AttachServer(
        given.listeners.attach,
        on_attached=rings.worker_attached,
        on_lost=rings.worker_lost,
        limit=2 * given.config.node.workers + _LOCAL_PEERS,
        allow=is_operator,
        on_quarantine=on_quarantine,
    )
