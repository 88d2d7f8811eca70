"""What can be seen of a device, whatever life it is in.

Supervisor. The slot moves it; facts, figures and placement read it.

Invariant: nothing here asks the process: its page, its hello and its exit tell.
"""

from __future__ import annotations

import time

from ipc.status import PageView
from neurond.devicehistory import History
from neurond.devicelife import Life, has_given
from neurond.discovery import DeviceSpec
from neurond.states import DeviceState

LIVING = (DeviceState.STARTING, DeviceState.READY)


class DeviceStanding:
    """`reason`: why it is not ready; kept until it serves again. `cure`: what an
    operator must do before it can be reset."""

    def __init__(self, spec: DeviceSpec) -> None:
        self.spec = spec
        self.state = DeviceState.ABSENT
        self.generation = 0
        self.since_s = time.time()
        self.reason = ""
        self.cure = ""
        self.history = History()
        self.memory_total_bytes = spec.memory_total_bytes
        self._life: Life | None = None

    @property
    def name(self) -> str:
        return self.spec.device

    @property
    def pid(self) -> int | None:
        return self._life.process.pid if self._life else None

    @property
    def is_up(self) -> bool:
        return self.state is DeviceState.READY

    @property
    def has_said_hello(self) -> bool:
        is_there = self._life is not None and self._life.hello is not None
        return is_there and self.state in LIVING

    def view(self) -> PageView | None:
        """The status page now; None while there is no process."""
        return self._life.process.view() if self._life else None

    def memory_free_bytes(self) -> int:
        view = self.view()
        told = view.gauges["memory_free_bytes"] if view else 0
        if told:
            return told
        hello = self._life.hello if self._life else None
        return hello.memory_free_bytes if hello else 0

    def has_emitted(self) -> bool:
        """A token or a vector, in this life."""
        view = self.view()
        return view is not None and has_given(view)
