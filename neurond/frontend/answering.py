"""From orders to an answer on the wire, whatever the dialect.

Front-end worker. Until the device has accepted a request every error is a status; then
a stream's headers go out (the commit point), and errors become events. Without
streaming the status stays open to the end.

Invariant: what was submitted is cancelled when the exchange ends, whatever ends it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from ipc.journal import Journal
from neurond.frontend import admission, metrics
from neurond.frontend.node import Node
from neurond.frontend.stream import AnswerStream, Frames, StreamOptions
from neurond.serving.choice import Order
from neurond.serving.devices import DeviceLine
from neurond.serving.edge import Request, Response, exchange_of
from neurond.serving.generation import Generation
from neurond.serving.requests import RequestTable


@dataclass(frozen=True, slots=True)
class Running:
    """A request that a device has accepted."""

    generation: Generation
    meter: metrics.RequestMeter


class Answering:
    def __init__(self, node: Node, table: RequestTable, journal: Journal) -> None:
        self._node = node
        self._table = table
        self._journal = journal

    async def start(
        self, req: Request, orders: Sequence[Order], line: DeviceLine, arrived_s: float
    ) -> Running:
        """Submit each order, and return once all are accepted. Raises ServiceError."""
        generation = Generation(self._table)
        meter = metrics.RequestMeter(orders[0].submit.model, arrived_s)
        exchange = exchange_of(req)
        exchange.on_close(generation.close)
        exchange.on_close(lambda: meter.end(generation, time.monotonic()))
        kind = self._node.device_kind(line.device)
        compiles = any(order.submit.grammar for order in orders)
        timeout_s = admission.decision_s(kind, compiles=compiles)
        await generation.start_all(orders, line.device, line, timeout_s=timeout_s)
        return Running(generation, meter)

    def stream(
        self,
        req: Request,
        resp: Response,
        running: Running,
        frames: Frames,
        *,
        include_usage: bool,
    ) -> None:
        """Have it answered by `frames`, as they come."""
        options = StreamOptions(
            include_usage=include_usage,
            count_usage=req.get_header("x-cortex-usage") == "1",
            request_id=exchange_of(req).request_id,
            on_text=lambda: running.meter.text(time.monotonic()),
            is_stopping=lambda: self._node.is_stopping,
        )
        stream = AnswerStream(running.generation, frames, options, self._journal)
        resp.content_type = "text/event-stream"
        resp.set_header("cache-control", "no-cache")
        resp.set_header("x-accel-buffering", "no")
        resp.stream = stream.frames()
