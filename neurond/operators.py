"""control.sock of the node: what operators and workers may ask and order.

Supervisor. Answers about what is are cut from the facts document; orders go to the
lifecycle and the device slots.

    status models devices version settings metrics   what is
    files {model_id}                                  where its tokenizer is
    events {since, limit}                             what was
    load unload {model_id, wait, if_match, …}         answers {status, model, version}
    respawn reset_done {device}   stop                orders
    faults   inject {device, kind, at_step, …}        simulated, where that is allowed
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from ipc import settings
from ipc.control import ControlServer
from ipc.errors import CapacityError, error_for
from ipc.eventlog import Event, EventLog
from ipc.operations import shared_operations
from ipc.peer import Peer, is_operator
from neurond import facts, loadorder
from neurond.config import Config
from neurond.injecting import Injector
from neurond.lifecycle import Lifecycle
from neurond.modelrecord import ModelRecord

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Orders:
    """What operators can set in motion."""

    state: Callable[[], Facts]
    metrics: Callable[[], Facts]
    lifecycle: Lifecycle
    want: Callable[[ModelRecord], None]
    release: Callable[[str], None]
    respawn: Callable[[str], None]
    reset_done: Callable[[str], None]
    injector: Injector
    stop: Callable[[], None]


class Operators:
    def __init__(
        self,
        listener: socket.socket,
        orders: Orders,
        config: Config,
        events: EventLog,
    ) -> None:
        self._orders = orders
        self._config = config
        own = (
            *("version", "settings", "metrics", "files", "load", "unload", "respawn"),
            *("faults", "inject", "reset_done"),
        )
        self._server = ControlServer(
            listener,
            {
                **shared_operations(orders.state, events, orders.stop),
                **{name: getattr(self, f"_{name}_op") for name in own},
            },
            authorize=is_operator,
            topics={"state": orders.state, "events": None},
        )

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._server.start(loop)

    def close(self) -> None:
        self._server.close()

    def tell_state(self, document: Facts) -> None:
        self._server.publish("state", document)

    def tell_event(self, event: Event) -> None:
        self._server.publish("events", event.to_dict())

    # ---- what is

    async def _version_op(self, _args: Facts, _peer: Peer) -> Facts:
        state = self._orders.state()
        return {"node": state["node"], **state["version"]}

    async def _settings_op(self, _args: Facts, _peer: Peer) -> Facts:
        return settings.redacted(self._config)

    async def _metrics_op(self, _args: Facts, _peer: Peer) -> Facts:
        return self._orders.metrics()

    async def _files_op(self, args: Facts, _peer: Peer) -> Facts:
        model = loadorder.model_id(args)
        lifecycle = self._orders.lifecycle
        record = lifecycle.records.get(model)
        if record is None:
            words = f"model {model} is not known here"
            raise error_for("model_not_found", words, param="model")
        return {"folder": str(await lifecycle.preparation.held(record))}

    # ---- orders

    async def _load_op(self, args: Facts, _peer: Peer) -> Facts:
        model, given = loadorder.model_id(args), loadorder.checked(args)
        loadorder.wants_to_wait(args)  # refused before anything is touched
        lifecycle = self._orders.lifecycle
        record = lifecycle.records.get(model)
        # who joins a load or finds it done has nothing to lose to another's change
        if record is None or not record.is_wanted:
            self._check_version(args)
        self._check_running()
        record = lifecycle.load(model, given)
        return await self._outcome(record, args, self._orders.want)

    async def _unload_op(self, args: Facts, _peer: Peer) -> Facts:
        model = loadorder.model_id(args)
        loadorder.wants_to_wait(args)
        self._check_version(args)
        record = self._orders.lifecycle.unload(model)
        self._orders.release(model)
        return await self._outcome(record, args, lambda _record: None)

    async def _respawn_op(self, args: Facts, _peer: Peer) -> Facts:
        self._orders.respawn(str(args.get("device", "")))
        return {}

    async def _reset_done_op(self, args: Facts, _peer: Peer) -> Facts:
        self._orders.reset_done(str(args.get("device", "")))
        return {}

    async def _faults_op(self, _args: Facts, _peer: Peer) -> Facts:
        return self._orders.injector.faults()

    async def _inject_op(self, args: Facts, _peer: Peer) -> Facts:
        return self._orders.injector.inject(args)

    async def _outcome(
        self, record: ModelRecord, args: Facts, then: Callable[[ModelRecord], None]
    ) -> Facts:
        """Wanted from the order on: a restart while it loads must not forget it."""
        then(record)
        if loadorder.wants_to_wait(args):
            await self._wait(record)
        state = self._orders.state()
        known = next(m for m in state["models"] if m["id"] == record.spec.id)
        version = facts.etag(state)
        return {"status": known["status"], "model": known, "version": version}

    async def _wait(self, record: ModelRecord) -> None:
        timeout_s = self._config.limits.load_deadline_s
        work: Awaitable[None] = self._orders.lifecycle.wait(record, timeout_s)
        try:
            await work
        except TimeoutError as error:
            text = f"model {record.spec.id} is still {record.status}"
            raise CapacityError(text, code="model_loading") from error

    def _check_version(self, args: Facts) -> None:
        wanted = args.get("if_match")
        if wanted is not None and wanted != facts.etag(self._orders.state()):
            text = "the node's models changed since that version was read"
            raise error_for("version_conflict", text)

    def _check_running(self) -> None:
        if self._orders.state()["state"] == "stopping":
            raise error_for("shutting_down", "the node is stopping")
