"""From a chat body to an order for a device; every refusal happens here.

Front-end worker. The order of the steps is the order of the refusals: body, fields,
model, room, grammar, template, length, quarantine, device.

Invariant: nothing is submitted yet; an error here leaves nothing behind.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ipc.errors import ClientError, error_for
from ipc.messages import Sampling, Submit
from neurond.frontend import admission
from neurond.frontend.node import Facts, Node
from neurond.frontend.prompts import Prompts
from neurond.serving.choice import Order
from neurond.serving.devices import DeviceLine, Devices
from neurond.serving.edge import Request, read_json
from neurond.serving.library import Library
from neurond.serving.params import ChatRequest, parse_chat
from neurond.serving.principal import principal_of
from neurond.serving.requests import RequestTable
from neurond.serving.sampling import Resolved, SamplingRequest, resolve

_TOKENIZER_S = 1.0
_PRIORITY = 100


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that may be submitted, and where."""

    request: ChatRequest
    order: Order
    line: DeviceLine


class Intake:
    def __init__(  # noqa: PLR0913  collaborators
        self,
        node: Node,
        library: Library,
        devices: Devices,
        table: RequestTable,
        prompts: Prompts,
        *,
        body_bytes: int,
        trusts_callers: bool = False,
    ) -> None:
        """`trusts_callers`: all have shown the node's token; they may say for whom they
        ask."""
        self._trusts_callers = trusts_callers
        self._node = node
        self._library = library
        self._devices = devices
        self._table = table
        self._prompts = prompts
        self._body_bytes = body_bytes

    async def prepare(self, req: Request) -> Prepared:
        """Raises ServiceError."""
        body = await read_json(req, limit_bytes=self._body_bytes)
        request = parse_chat(body)
        fact = self.admit(request.model, num_sequences=request.sampling.n)
        served = await self._library.get(request.model, timeout_s=_TOKENIZER_S)
        window = int(fact["context"])
        if request.grammar is not None:
            await self._library.grammars.check(request.grammar)
        messages = self._prompts.cleaned(request.model, request.messages)
        ids = await self._library.prompt_ids(
            served, messages, request.tools.offered, window=window
        )
        if not ids:
            raise ClientError("the messages give an empty prompt", param="messages")
        limits = served.limits(window)
        asked = request.sampling
        resolved = resolve(asked, limits, num_prompt=len(ids))
        grammar = request.grammar.text if request.grammar else ""
        submit = new_submit(
            request.model,
            ids,
            asked,
            resolved,
            principal=self.principal(req),
            grammar=grammar,
        )
        self._prompts.rendered(submit, messages, request.tools.offered)
        order = Order(submit, asked.n, asked.stop, served.tokenizer, request.stream)
        return Prepared(request, order, self.line(fact, [submit]))

    def principal(self, req: Request) -> str:
        return principal_of(req, trusts_header=self._trusts_callers)

    def admit(self, model: str, kind: str = "chat", *, num_sequences: int = 1) -> Facts:
        """The model's fact. Raises ServiceError: not now, no room, not its kind."""
        fact = self._node.model(model)
        refusal = admission.refusal(self._node.state, model, fact, kind)
        if refusal is not None or fact is None:
            raise refusal or error_for("internal_error", "admitted without a fact")
        num_seats = admission.num_seats(fact, len(self._table))
        self._table.check_room(num_sequences, admission.token_s(fact), num_seats)
        return fact

    def line(self, fact: Facts, submits: Iterable[Submit]) -> DeviceLine:
        """The way to a device that holds the model. Raises ServiceError, also for what
        no device may be given."""
        self._node.check_quarantine(submits)
        line = self._devices.pick(fact["devices"])
        if line is None:
            words = f"the device of model {fact['id']} is coming back"
            raise error_for("model_recovering", words)
        return line


def new_submit(  # noqa: PLR0913  what a sequence is made of
    model: str,
    ids: tuple[int, ...],
    request: SamplingRequest,
    resolved: Resolved,
    *,
    principal: str,
    grammar: str = "",
) -> Submit:
    """The sequence to run; a seed is minted where the client gave none."""
    seed = secrets.randbits(64) if request.seed is None else request.seed
    return replace(
        new_embedding(model, ids, principal=principal),
        seed=seed,
        sampling=resolved.sampling,
        max_tokens=resolved.max_tokens,
        stop_ids=resolved.stop_ids,
        grammar=grammar,
        cache_salt=request.cache_salt,
        embed=False,
    )


def new_embedding(model: str, ids: tuple[int, ...], *, principal: str) -> Submit:
    """The sequence that gives a vector."""
    return Submit(
        id=0,  # the table numbers it
        attempt=0,
        model=model,
        ids=ids,
        num_prompt=len(ids),
        choice=0,
        seed=0,
        sampling=Sampling(),
        max_tokens=0,
        stop_ids=(),
        grammar="",
        principal=principal,
        priority=_PRIORITY,
        deadline_s=0.0,
        cache_salt="",
        embed=True,
    )
