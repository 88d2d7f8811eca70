"""From a chat body to an order for a device; every refusal happens here.

Front-end worker. The order of the steps is the order of the refusals: body, fields,
model, room, template, length, device.

Invariant: nothing is submitted yet; an error here leaves nothing behind.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from ipc.errors import ClientError, error_for
from ipc.messages import Submit
from neurond.frontend import admission
from neurond.frontend.node import Facts, Node
from neurond.serving.devices import DeviceLine, Devices
from neurond.serving.edge import Request, read_json
from neurond.serving.generation import Order
from neurond.serving.library import Library, ServedModel
from neurond.serving.params import ChatRequest, parse_chat, resolve
from neurond.serving.requests import RequestTable

_TOKENIZER_S = 1.0
_PRIORITY = 100


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that may be submitted, and where."""

    request: ChatRequest
    order: Order
    line: DeviceLine


class Intake:
    def __init__(
        self,
        node: Node,
        library: Library,
        devices: Devices,
        table: RequestTable,
        *,
        body_bytes: int,
    ) -> None:
        self._node = node
        self._library = library
        self._devices = devices
        self._table = table
        self._body_bytes = body_bytes

    async def prepare(self, req: Request) -> Prepared:
        """Raises ServiceError."""
        body = await read_json(req, limit_bytes=self._body_bytes)
        request = parse_chat(body)
        fact = self._admit(request.model)
        served = await self._library.get(request.model, timeout_s=_TOKENIZER_S)
        window = int(fact["context"])
        ids = await self._library.prompt_ids(served, request.messages, window=window)
        if not ids:
            raise ClientError("the messages give an empty prompt", param="messages")
        submit = _submit(request, served, ids, window=window)
        order = Order(submit, request.n, request.stop, served.tokenizer, request.stream)
        return Prepared(request, order, self._line(fact))

    def _admit(self, model: str) -> Facts:
        fact = self._node.model(model)
        refusal = admission.refusal(self._node.state, model, fact)
        if refusal is not None or fact is None:
            raise refusal or error_for("internal_error", "admitted without a fact")
        self._table.check_room()
        return fact

    def _line(self, fact: Facts) -> DeviceLine:
        line = self._devices.pick(fact["devices"])
        if line is None:
            words = f"the device of model {fact['id']} is coming back"
            raise error_for("model_recovering", words)
        return line


def _submit(
    request: ChatRequest, served: ServedModel, ids: tuple[int, ...], *, window: int
) -> Submit:
    sampling, max_tokens = resolve(request, served.limits(window), num_prompt=len(ids))
    seed = secrets.randbits(63) if request.seed is None else request.seed
    return Submit(
        id=0,  # the table numbers it
        attempt=0,
        model=request.model,
        ids=ids,
        num_prompt=len(ids),
        choice=0,
        seed=seed & (1 << 63) - 1,
        sampling=sampling,
        max_tokens=max_tokens,
        stop_ids=served.stop_ids,
        grammar="",
        principal="",
        priority=_PRIORITY,
        deadline_s=0.0,
        cache_salt="",
    )
