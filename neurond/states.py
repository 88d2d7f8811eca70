"""The lives of a device and of a model, as tables of state × event.

Supervisor; data only, no effects. A cell that is missing is an event that can't happen
in that state and is refused (`IllegalTransition`): there the reader is wrong, not the
table.

    device   absent ─spawn▶ starting ─serving▶ ready ─exited▶ backoff ─spawn▶ starting …
                 overdue: dying until it exits; unkillable or hopeless: failed
    model    unloaded ─load▶ loading ─loaded▶ loaded ─unload▶ unloading ─unloaded▶ …
                 its device dies: recovering until it is loaded again
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class IllegalTransition(Exception):
    """A bug of ours: the event has no meaning in this state."""


class DeviceState(StrEnum):
    ABSENT = "absent"
    STARTING = "starting"
    READY = "ready"
    DYING = "dying"
    BACKOFF = "backoff"
    FAILED = "failed"
    STOPPING = "stopping"
    STOPPED = "stopped"


class DeviceEvent(StrEnum):
    SPAWN = "spawn"  # a process was asked for
    SERVING = "serving"  # it said hello and its models are back
    KILL = "kill"  # we sent SIGKILL
    EXITED = "exited"  # it is gone, or could not be started
    GIVE_UP = "give up"  # too many unproductive lives, or SIGKILL has no effect
    RESET = "reset"  # an operator wants another try
    STOP = "stop"


class ModelStatus(StrEnum):
    UNLOADED = "unloaded"
    CONVERTING = "converting"
    LOADING = "loading"
    LOADED = "loaded"
    RECOVERING = "recovering"
    UNLOADING = "unloading"
    FAILED = "failed"


class ModelEvent(StrEnum):
    LOAD = "load"
    CONVERT = "convert"  # the source must become a folder first
    LOADED = "loaded"
    FAILED = "failed"
    DEVICE_LOST = "device lost"
    UNLOAD = "unload"
    UNLOADED = "unloaded"


_D, _DE = DeviceState, DeviceEvent
DEVICE: Mapping[tuple[DeviceState, DeviceEvent], DeviceState] = {
    (_D.ABSENT, _DE.SPAWN): _D.STARTING,
    (_D.ABSENT, _DE.STOP): _D.STOPPED,
    (_D.STARTING, _DE.SERVING): _D.READY,
    (_D.STARTING, _DE.KILL): _D.DYING,
    (_D.STARTING, _DE.EXITED): _D.BACKOFF,
    (_D.STARTING, _DE.STOP): _D.STOPPING,
    (_D.READY, _DE.KILL): _D.DYING,
    (_D.READY, _DE.EXITED): _D.BACKOFF,
    (_D.READY, _DE.STOP): _D.STOPPING,
    (_D.DYING, _DE.EXITED): _D.BACKOFF,
    (_D.DYING, _DE.KILL): _D.DYING,
    (_D.DYING, _DE.GIVE_UP): _D.FAILED,
    (_D.DYING, _DE.STOP): _D.STOPPING,
    (_D.BACKOFF, _DE.SPAWN): _D.STARTING,
    (_D.BACKOFF, _DE.GIVE_UP): _D.FAILED,
    (_D.BACKOFF, _DE.STOP): _D.STOPPED,
    (_D.FAILED, _DE.RESET): _D.BACKOFF,
    (_D.FAILED, _DE.EXITED): _D.FAILED,
    (_D.FAILED, _DE.STOP): _D.STOPPED,
    (_D.STOPPING, _DE.KILL): _D.STOPPING,
    (_D.STOPPING, _DE.STOP): _D.STOPPING,
    (_D.STOPPING, _DE.EXITED): _D.STOPPED,
    (_D.STOPPED, _DE.STOP): _D.STOPPED,
    (_D.STOPPED, _DE.EXITED): _D.STOPPED,
}

_M, _ME = ModelStatus, ModelEvent
MODEL: Mapping[tuple[ModelStatus, ModelEvent], ModelStatus] = {
    (_M.UNLOADED, _ME.LOAD): _M.LOADING,
    (_M.UNLOADED, _ME.FAILED): _M.UNLOADED,  # what was unloaded meanwhile
    (_M.UNLOADED, _ME.LOADED): _M.UNLOADED,
    (_M.UNLOADED, _ME.DEVICE_LOST): _M.UNLOADED,
    (_M.FAILED, _ME.LOAD): _M.LOADING,
    (_M.FAILED, _ME.FAILED): _M.FAILED,
    (_M.FAILED, _ME.LOADED): _M.FAILED,
    (_M.FAILED, _ME.UNLOAD): _M.UNLOADED,
    (_M.FAILED, _ME.DEVICE_LOST): _M.FAILED,
    (_M.LOADING, _ME.CONVERT): _M.CONVERTING,
    (_M.LOADING, _ME.LOADED): _M.LOADED,
    (_M.LOADING, _ME.FAILED): _M.FAILED,
    (_M.LOADING, _ME.UNLOAD): _M.UNLOADING,
    (_M.LOADING, _ME.DEVICE_LOST): _M.LOADING,
    (_M.CONVERTING, _ME.LOAD): _M.LOADING,
    (_M.CONVERTING, _ME.FAILED): _M.FAILED,
    (_M.CONVERTING, _ME.UNLOAD): _M.UNLOADING,
    (_M.CONVERTING, _ME.DEVICE_LOST): _M.CONVERTING,
    (_M.LOADED, _ME.UNLOAD): _M.UNLOADING,
    (_M.LOADED, _ME.LOADED): _M.LOADED,
    (_M.LOADED, _ME.DEVICE_LOST): _M.RECOVERING,
    (_M.LOADED, _ME.FAILED): _M.FAILED,
    (_M.RECOVERING, _ME.LOADED): _M.LOADED,
    (_M.RECOVERING, _ME.FAILED): _M.FAILED,
    (_M.RECOVERING, _ME.UNLOAD): _M.UNLOADING,
    (_M.RECOVERING, _ME.DEVICE_LOST): _M.RECOVERING,
    (_M.UNLOADING, _ME.UNLOADED): _M.UNLOADED,
    (_M.UNLOADING, _ME.LOADED): _M.UNLOADING,  # the load was faster than the order
    (_M.UNLOADING, _ME.FAILED): _M.UNLOADED,
    (_M.UNLOADING, _ME.DEVICE_LOST): _M.UNLOADED,
}

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 30.0
MOST_UNPRODUCTIVE = 5
"""Lives in a row without a token after which a device is taken out (S17)."""
MOST_FAILED_STARTS = 10
"""Processes in a row that could not be started, by fork or exec: we can't act (S13)."""


def next_device_state(state: DeviceState, event: DeviceEvent) -> DeviceState:
    """Raises IllegalTransition."""
    try:
        return DEVICE[state, event]
    except KeyError:
        raise IllegalTransition(f"device {state}: {event}") from None


def next_model_status(status: ModelStatus, event: ModelEvent) -> ModelStatus:
    """Raises IllegalTransition."""
    try:
        return MODEL[status, event]
    except KeyError:
        raise IllegalTransition(f"model {status}: {event}") from None


def pause_s(num_unproductive: int) -> float:
    """Seconds to wait before the next life: none after a productive one."""
    if num_unproductive == 0:
        return 0.0
    return min(FIRST_PAUSE_S * 2.0 ** (num_unproductive - 1), LONGEST_PAUSE_S)


def is_hopeless(num_unproductive: int) -> bool:
    return num_unproductive >= MOST_UNPRODUCTIVE


def is_beyond_starting(num_failed: int) -> bool:
    return num_failed >= MOST_FAILED_STARTS
