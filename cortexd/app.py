"""The composition root of a gateway worker: settings in, ASGI app out.

    Edge ─▶ Falcon ─▶ resources ─▶ Relay ─▶ Pool per node ─▶ node
                          ▲          ▲
                      Documents   Snapshot ◀─ Feed ◀─ fleet.sock

Imports no torch: a gateway-only host has none.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import falcon.asgi

from cortexd import config, documents
from cortexd.documents import Documents
from cortexd.feed import Feed
from cortexd.nodes import endpoint
from cortexd.nodes.pool import Pool
from cortexd.relay import Relay
from cortexd.resources import relayed
from cortexd.resources.models import ModelResource, ModelsResource
from cortexd.resources.relayed import RelayedResource
from cortexd.resources.state import HealthResource, VersionResource
from cortexd.series import Accounts, Series
from cortexd.snapshot import EMPTY, Snapshot
from ipc.journal import Journal
from neurond.serving.edge import Edge

_FIRST_SNAPSHOT_S = 1.0
_ENDING_S = 1.0
_POLL_S = 0.02


def create(extra: dict[str, Any]) -> Edge:
    """Called in each worker, with what `launch` put there."""
    return Worker(extra, Series()).edge


class Worker:
    """Everything a worker owns."""

    def __init__(self, extra: dict[str, Any], series: Series) -> None:
        self._gateway = extra["gateway"]
        given = config.build(extra["settings"]).config
        journal = Journal("cortexd", mode=given.log.format)
        self._pools = _pools(given)
        self._feed = Feed(Path(extra["fleet_path"]), journal, self._take)
        self._follower: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._take(EMPTY)
        self._accounts = accounts = Accounts(series)
        relay = Relay(
            snapshot=self._feed.snapshot,
            refresh=self._feed.refresh,
            pools=self._pools,
            accounts=accounts,
            journal=journal,
            idle_timeout_s=given.gateway.idle_timeout_s,
            is_stopping=lambda: self._is_stopping,
        )
        app = self._routes(relay, accounts, given)
        self.edge = Edge(app, journal)

    def _routes(
        self, relay: Relay, accounts: Accounts, given: config.Config
    ) -> falcon.asgi.App[Any, Any]:
        app: falcon.asgi.App[Any, Any] = falcon.asgi.App(middleware=[self])
        body_bytes = given.gateway.body_bytes

        def handed_on(endpoint: relayed.Endpoint) -> RelayedResource:
            return RelayedResource(endpoint, relay, accounts, body_bytes=body_bytes)

        app.add_route("/v1/chat/completions", handed_on(relayed.CHAT))
        app.add_route("/v1/completions", handed_on(relayed.COMPLETIONS))
        app.add_route("/v1/embeddings", handed_on(relayed.EMBEDDINGS))
        app.add_route("/tokenize", handed_on(relayed.TOKENIZE))
        app.add_route("/detokenize", handed_on(relayed.DETOKENIZE))
        app.add_route("/v1/models", ModelsResource(self.documents))
        app.add_route("/v1/models/{model:path}", ModelResource(self.documents))
        app.add_route("/health", HealthResource(self.documents))
        app.add_route("/version", VersionResource(self._gateway))
        return app

    def documents(self) -> Documents:
        return self._documents

    def _take(self, snapshot: Snapshot) -> None:
        self._documents = documents.of(snapshot, self._gateway)

    async def process_startup(self, _scope: Any, _event: Any) -> None:
        """Serve once the whole fleet is known, or a while has gone."""
        self._follower = asyncio.create_task(self._feed.follow())
        try:
            await asyncio.wait_for(self._feed.known.wait(), _FIRST_SNAPSHOT_S)
        except TimeoutError:
            pass  # a node or fleet itself is away: serve what there is

    async def process_shutdown(self, _scope: Any, _event: Any) -> None:
        """The drain is over: end what is open, so that each client hears of it."""
        self._is_stopping = True
        if self._follower is not None:
            self._follower.cancel()
        for pool in self._pools.values():
            pool.close()
        polls_left = _ENDING_S / _POLL_S
        while self._accounts.num_open and polls_left > 0:
            polls_left -= 1
            await asyncio.sleep(_POLL_S)


def _pools(given: config.Config) -> dict[str, Pool]:
    return {
        neuron.name: Pool(
            endpoint.parse(neuron.endpoint),
            token=neuron.token,
            connect_timeout_s=given.gateway.connect_timeout_s,
        )
        for neuron in given.neurons
    }
