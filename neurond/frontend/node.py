"""A worker's ties to its node: the facts it was told last, orders, and the devices.

Front-end worker. Two connections to the supervisor, each renewed when it ends:
control.sock brings every facts document and every event and takes orders; attach.sock
brings the rings. Resources read the facts kept here and never wait for the supervisor
(S24).

Invariant: `facts` is the newest document that came, and outlives the connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ipc.attach import AttachClient
from ipc.control import ControlClient, ControlClosed
from ipc.errors import ServiceError, cause_chain, error_for
from ipc.journal import Journal
from ipc.messages import Submit
from neurond.frontend.settings import WorkerSettings
from neurond.serving.devices import Devices
from neurond.serving.fingerprint import fingerprint

Facts = dict[str, Any]

_CONNECT_TIMEOUT_S = 5.0
_RETRY_S = 0.2
_CATCH_UP_S = 2.0
_MEND_POLL_S = 0.25
_MEND_POLLS = 120


class Node:
    """`on_facts` and `on_event` are called from the loop, with each document."""

    def __init__(
        self,
        settings: WorkerSettings,
        journal: Journal,
        *,
        on_facts: Callable[[Facts], None],
        on_event: Callable[[Facts], None],
    ) -> None:
        self._path = Path(settings.control_path)
        self._journal = journal
        self._on_facts = on_facts
        self._on_event = on_event
        self._client: ControlClient | None = None
        self._models: dict[str, Facts] = {}
        self._quarantined: dict[str, float] = {}
        self.facts: Facts = {}
        self.known = asyncio.Event()
        self._news = asyncio.Event()

    @property
    def state(self) -> str:
        return str(self.facts.get("state", ""))

    @property
    def is_stopping(self) -> bool:
        return self.state in ("draining", "stopping")

    def model(self, name: str) -> Facts | None:
        return self._models.get(name)

    def check_quarantine(self, submits: Iterable[Submit]) -> None:
        """Raises ClientError for what killed a device before (S16)."""
        if not self._quarantined:
            return
        for submit in submits:
            prompt = submit.ids[: submit.num_prompt]
            until_s = self._quarantined.get(fingerprint(submit.model, prompt), 0.0)
            if time.time() < until_s:
                words = "a request with this prompt killed a device while it ran alone"
                raise error_for("request_quarantined", words)

    def device_kind(self, name: str) -> str:
        devices = self.facts.get("devices", ())
        return next((d["kind"] for d in devices if d["device"] == name), "")

    async def order(self, op: str, args: Mapping[str, Any], timeout_s: float) -> Facts:
        """Ask the supervisor. Raises ServiceError."""
        if self._client is None:
            raise error_for("overloaded", "the node's supervisor can't be reached")
        try:
            return await self._client.request(op, args, timeout_s)
        except TimeoutError as error:
            raise error_for("overloaded", "the node gave no answer in time") from error
        except ControlClosed as error:
            raise error_for("overloaded", "the node is restarting") from error

    async def caught_up(self, version: str) -> None:
        """Wait until the facts here are at least as new as an order's answer.

        They come a moment later; who loads a model and then asks for it must find it.
        """
        boot_id, _, residency = version.rpartition(".")
        try:
            async with asyncio.timeout(_CATCH_UP_S):
                while boot_id == self.facts.get("boot_id", boot_id):
                    if self.facts.get("residency", -1) >= int(residency):
                        return
                    await self._news.wait()
        except (TimeoutError, ValueError):
            return  # the answer is true all the same

    async def follow(self) -> None:
        """Keep the control connection until cancelled."""
        await _renew("control", self._follow_once, self._journal)

    async def _follow_once(self) -> None:
        client = ControlClient()
        await client.connect(self._path, _CONNECT_TIMEOUT_S)
        try:
            await client.subscribe(["state", "events"], self._take)
            self._client = client
            await client.closed
        finally:
            self._client = None
            client.close()

    def _take(self, topic: str, data: Facts) -> None:
        if topic == "events":
            self._on_event(data)
            return
        self.facts = data
        self._models = {model["id"]: model for model in data["models"]}
        listed = data.get("quarantined", ())
        self._quarantined = {q["fingerprint"]: q["until_s"] for q in listed}
        self.known.set()
        self._news.set()
        self._news = asyncio.Event()
        self._on_facts(data)


class Attachment:
    """The lease on the devices."""

    def __init__(
        self, settings: WorkerSettings, journal: Journal, *, name: str, build: str
    ) -> None:
        self._path = Path(settings.attach_path)
        self._journal = journal
        self._name = name
        self._build = build
        self._lost = asyncio.Event()
        self._client: AttachClient | None = None

    def quarantine(self, submit: Submit) -> None:
        """Have it known as one that kills devices, by every worker."""
        if self._client is not None:
            prompt = submit.ids[: submit.num_prompt]
            found = fingerprint(submit.model, prompt)
            self._client.quarantine(found, submit.model)

    def mend(self, is_idle: Callable[[], bool]) -> None:
        """Attach anew: only that replaces a broken channel.

        The requests at other devices lose time by it, so it waits until there are
        none, or for half a minute. A lease that ended meanwhile took the broken channel
        with it.
        """
        self._mend(self._lost, is_idle, _MEND_POLLS)

    def _mend(
        self, lost: asyncio.Event, is_idle: Callable[[], bool], polls_left: int
    ) -> None:
        if lost.is_set() or is_idle() or polls_left == 0:
            lost.set()
            return
        loop = asyncio.get_running_loop()
        loop.call_later(_MEND_POLL_S, self._mend, lost, is_idle, polls_left - 1)

    async def keep(self, devices: Devices) -> None:
        """Stay attached until cancelled."""
        await _renew("attach", lambda: self._attach_once(devices), self._journal)

    async def _attach_once(self, devices: Devices) -> None:
        lost = self._lost = asyncio.Event()
        client = AttachClient(
            self._path,
            role="worker",
            name=self._name,
            build=self._build,
            on_pair=devices.on_pair,
            on_down=devices.on_down,
            on_lost=lost.set,
        )
        try:
            await client.connect(_CONNECT_TIMEOUT_S)
            self._client = client
            await lost.wait()
        finally:
            self._client = None
            client.close()
            devices.on_lost()


async def _renew(
    name: str, connect: Callable[[], Awaitable[None]], journal: Journal
) -> None:
    while True:
        try:
            await connect()
        except (OSError, ServiceError) as error:
            cause = " <- ".join(cause_chain(error))
            journal.warning("no connection to the supervisor", link=name, cause=cause)
        await asyncio.sleep(_RETRY_S)
