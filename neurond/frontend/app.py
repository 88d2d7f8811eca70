"""The composition root of a front-end worker.

Called once in each worker, after its fork. Everything with a state of its own is made
here and handed to those that use it; the server's lifespan starts and stops it.

    HTTP ─▶ Edge ─▶ resources ─▶ Intake ─▶ RequestTable ─▶ Devices ─▶ rings
                        └─▶ Node (facts, orders) ◀─ control.sock

Invariant: no torch in this process.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import secrets
from typing import Any, cast

import falcon.asgi

import ipc
from ipc.errors import ClientError
from ipc.journal import Journal, Mode
from neurond.frontend import lifecycle, metrics, status, views
from neurond.frontend.answering import Answering
from neurond.frontend.chat import ChatResource
from neurond.frontend.completions import CompletionsResource
from neurond.frontend.embeddings import EmbeddingsResource
from neurond.frontend.events import EventHub, EventsResource
from neurond.frontend.intake import Intake
from neurond.frontend.node import Attachment, Facts, Node
from neurond.frontend.prompts import Prompts
from neurond.frontend.resumption import Resumption
from neurond.frontend.settings import WorkerSettings
from neurond.frontend.tokens import DetokenizeResource, Shelf, TokenizeResource
from neurond.serving.devices import Devices
from neurond.serving.edge import Edge, Request, Response
from neurond.serving.library import Library
from neurond.serving.requests import RequestTable

_FIRST_FACTS_S = 5.0
_AT_HAND = ("loading", "loaded", "recovering")
"""States in which a model's tokenizer is kept; its folder is known by then."""


def create(extra: dict[str, Any]) -> Edge:
    """The ASGI app of this worker; `extra` is a WorkerSettings."""
    settings = WorkerSettings.from_extra(extra)
    mode = cast("Mode", settings.log_format)
    return Worker(settings, Journal("neurond", mode=mode)).edge()


class Worker:
    def __init__(self, settings: WorkerSettings, journal: Journal) -> None:
        self._settings = settings
        self._journal = journal
        # The number of the process's life is random, so that two workers of one node,
        # or two lives of one, have no request id in common.
        self._table = RequestTable(
            first_id=secrets.randbits(31) << 32,
            max_entries=settings.max_queue,
            resume_deadline_s=settings.resume_deadline_s if settings.resume else 0.0,
            on_resumed=lambda submit: metrics.resumed(submit.model),
            on_convicted=lambda submit: self._attachment.quarantine(submit),
        )
        self._library = Library()
        self.hub = EventHub()
        self._devices = Devices(self._table, journal, self._mend)
        self._attachment = Attachment(
            settings, journal, name=_name(), build=ipc.__version__
        )
        self._node = Node(
            settings,
            journal,
            on_facts=self._on_facts,
            on_event=self.hub.publish,
        )
        self._resumption = Resumption(self._table, self._node)
        self._tasks: list[asyncio.Task[None]] = []

    def edge(self) -> Edge:
        app: falcon.asgi.App[Request, Response] = falcon.asgi.App(
            middleware=[Lifespan(self), Guard(self._settings.token)]
        )
        self._add_routes(app)
        return Edge(app, self._journal)

    @property
    def facts(self) -> Facts:
        return self._node.facts

    def is_attached(self, device: str) -> bool:
        return self._devices.pick([device]) is not None

    async def start(self) -> None:
        """Follow the node; serve once the first facts are here, or a while has gone."""
        self._tasks = [
            asyncio.create_task(self._node.follow()),
            asyncio.create_task(self._attachment.keep(self._devices)),
            asyncio.create_task(self._resumption.keep()),
        ]
        try:
            await asyncio.wait_for(self._node.known.wait(), _FIRST_FACTS_S)
        except TimeoutError:
            self._journal.warning("serving without facts: the supervisor is silent")

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._library.close()

    def _add_routes(self, app: falcon.asgi.App[Request, Response]) -> None:
        node, settings = self._node, self._settings
        prompts = Prompts(settings.hygiene, self._journal)
        intake = Intake(
            node,
            self._library,
            self._devices,
            self._table,
            prompts,
            body_bytes=settings.body_bytes,
            trusts_callers=bool(settings.token),
        )
        answering = Answering(node, self._table, self._journal)
        chat = ChatResource(intake, answering)
        deadline_s = settings.load_deadline_s
        app.add_route("/version", status.VersionResource(node))
        app.add_route("/discovery", status.DiscoveryResource(node))
        app.add_route("/health", status.HealthResource(node))
        app.add_route("/models", status.ModelsResource(node))
        app.add_route("/events", EventsResource(node, self.hub))
        for op in ("load", "unload"):
            resource = lifecycle.LifecycleResource(node, op, timeout_s=deadline_s)
            app.add_route(f"/models/{op}", resource)
        # the sink that is added last is asked first
        model = status.ModelResource(node, views.model)
        app.add_sink(model.on_request, r"/models/(?P<model>.+)\Z")
        capabilities = status.ModelResource(node, views.capabilities)
        app.add_sink(capabilities.on_request, r"/models/(?P<model>.+)/capabilities\Z")
        app.add_route("/v1/models", status.OpenaiModelsResource(node))
        app.add_route("/v1/models/{model:path}", status.OpenaiModelResource(node))
        app.add_route("/v1/chat/completions", chat)
        shelf, body_bytes = Shelf(node, self._library), settings.body_bytes
        vectors = EmbeddingsResource(
            intake, node, self._library, self._table, body_bytes=body_bytes
        )
        app.add_route("/v1/embeddings", vectors)
        texts = CompletionsResource(
            intake,
            self._library,
            answering,
            body_bytes=body_bytes,
            max_sequences=settings.max_queue,
        )
        app.add_route("/v1/completions", texts)
        counted = TokenizeResource(shelf, prompts, body_bytes=body_bytes)
        app.add_route("/tokenize", counted)
        app.add_route("/detokenize", DetokenizeResource(shelf, body_bytes=body_bytes))

    def _on_facts(self, facts: Facts) -> None:
        wanted = {
            fact["id"]: fact["folder"]
            for fact in facts["models"]
            if fact["status"] in _AT_HAND and fact.get("folder")
        }
        self._library.keep(wanted)
        self._resumption.look()

    def _mend(self) -> None:
        table = self._table
        self._attachment.mend(lambda: len(table) == len(table.parked))


class Lifespan:
    """The server's start and stop, as Falcon hands them on."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def process_startup(self, _scope: Any, _event: Any) -> None:
        await self._worker.start()

    async def process_shutdown(self, _scope: Any, _event: Any) -> None:
        await self._worker.stop()


class Guard:
    """The node's bearer token, when one is configured; placeholder keys pass (S43)."""

    def __init__(self, token: str) -> None:
        self._wanted = f"Bearer {token}".encode() if token else b""

    async def process_request(self, req: Request, _resp: Response) -> None:
        given = (req.get_header("authorization") or "").encode()
        if self._wanted and not hmac.compare_digest(given, self._wanted):
            raise ClientError("no valid node token was sent", code="invalid_api_key")


def _name() -> str:
    return f"worker {os.environ.get('CORTEX_WORKER', '')}".strip()
