"""One request's way to a node and back.

Gateway worker. Until the first frame is there nothing has gone to the client, so a node
that dies or is busy is replaced by another one; afterwards the stream can only go on or
end in an error event. Bytes are handed through; `frames` says what is read in passing.

    decide ─▶ attempt ─▶ Whole            a status and a body
     │ ▲         │  └──▶ RelayStream      committed: frames, then one terminal event
     │ └─────────┘ Setback: once more, on another node
     └─▶ no node: decide once more when the nodes were asked anew, then refuse

Invariant: whatever happens, the connection to the node is given back or closed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from cortexd.answers import Whole, checked
from cortexd.nodes.http import NodeError, Silent, Unreachable
from cortexd.nodes.pool import Answer, Patience, Pool, Request
from cortexd.router import Decision, Serve, decide, resolve
from cortexd.series import NO_MODEL, Account, Accounts
from cortexd.snapshot import Snapshot
from cortexd.stream import Party, RelayStream
from ipc.errors import ServiceError, cause_chain, error_for
from ipc.journal import Journal
from neurond.serving import principal

_ATTEMPTS = 2
_BUSY = (429, 503)
_MAX_WHOLE_BYTES = 256 << 20
_EVENTS = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Ask:
    """What a client wants; `body_for(model id)` is what a node gets. Unless it is
    `on_device`, a node needs the model's files only. `principal`: for whom (S31)."""

    model: str
    stream: bool
    path: str
    request_id: str
    body_for: Callable[[str], bytes]
    on_device: bool = True
    principal: str = ""


class Setback(Exception):
    """An attempt that another node may make good; else this is the answer."""

    def __init__(self, answer: Whole | ServiceError) -> None:
        super().__init__()
        self.answer = answer


class Relay:
    """Collaborators come from the composition root, `app`. `refresh` brings the
    snapshot up to date; it has a deadline of its own and never raises."""

    def __init__(  # noqa: PLR0913  collaborators
        self,
        *,
        snapshot: Callable[[], Snapshot],
        refresh: Callable[[], Awaitable[None]],
        pools: Mapping[str, Pool],
        accounts: Accounts,
        journal: Journal,
        idle_timeout_s: float,
        is_stopping: Callable[[], bool],
    ) -> None:
        self._snapshot = snapshot
        self._refresh = refresh
        self._pools = pools
        self._accounts = accounts
        self._journal = journal
        self._idle_timeout_s = idle_timeout_s
        self._is_stopping = is_stopping

    async def answer(self, ask: Ask, account: Account) -> Whole | RelayStream:
        """Raises ServiceError. A RelayStream must be released."""
        last: Whole | ServiceError | None = None
        tried: list[str] = []
        while len(tried) < _ATTEMPTS and not self._is_stopping():
            decision = await self._decision(ask, tried)
            account.model = resolve(self._snapshot(), ask.model) or NO_MODEL
            if not isinstance(decision, Serve):
                last = last or decision.error
                break
            try:
                return await self._attempt(ask, decision, account)
            except Setback as setback:
                last = setback.answer
                tried.append(decision.node)
                self._accounts.set_back(decision.node)
        if self._is_stopping() or last is None:
            raise error_for("shutting_down", "the gateway is stopping")
        if isinstance(last, ServiceError):
            raise last
        return last

    async def _decision(self, ask: Ask, tried: list[str]) -> Decision:
        """What was loaded a moment ago is not refused for a snapshot that is old."""
        decision = self._decide(ask, tried)
        if isinstance(decision, Serve) or tried:
            return decision
        await self._refresh()
        return self._decide(ask, tried)

    def _decide(self, ask: Ask, tried: list[str]) -> Decision:
        in_flight = {name: pool.in_flight for name, pool in self._pools.items()}
        return decide(
            self._snapshot(),
            ask.model,
            on_device=ask.on_device,
            without=tried,
            in_flight=in_flight,
        )

    async def _attempt(
        self, ask: Ask, target: Serve, account: Account
    ) -> Whole | RelayStream:
        """Raises Setback."""
        pool = self._pools[target.node]
        try:
            answer = await pool.request(
                _request(ask, target), self._patience(ask, target)
            )
            try:
                return await self._received(answer, ask, target, account)
            except BaseException:  # cancelled included: the node must hear of it
                answer.release()
                raise
        except NodeError as error:
            raise Setback(self._told(error, ask, target)) from error

    async def _received(
        self, answer: Answer, ask: Ask, target: Serve, account: Account
    ) -> Whole | RelayStream:
        """Raises NodeError, Setback."""
        if answer.status == 200 and answer.header(b"content-type").startswith(_EVENTS):
            stream = self._stream(answer, ask, target, account)
            await stream.start()
            return stream
        body = await answer.read_all(_MAX_WHOLE_BYTES)
        retry_after = answer.header(b"retry-after")
        whole = checked(answer.status, body, retry_after, ask.request_id)
        answer.release()
        if whole.status in _BUSY:
            raise Setback(whole)
        return whole

    def _stream(
        self, answer: Answer, ask: Ask, target: Serve, account: Account
    ) -> RelayStream:
        return RelayStream(
            answer,
            account,
            Party(ask.request_id, target.node),
            journal=self._journal,
            is_stopping=self._is_stopping,
        )

    def _patience(self, ask: Ask, target: Serve) -> Patience:
        """A stream's node is never silent for long. One that makes a whole answer is,
        so there its being up is the sign of life (S46). A node that is down by now is
        not waited for in either case."""
        idle_s = self._idle_timeout_s

        def goes_on(silent_s: float) -> bool:
            is_short = silent_s < idle_s or not ask.stream
            return is_short and self._snapshot().is_up(target.node)

        return Patience(idle_s, goes_on)

    def _told(self, error: NodeError, ask: Ask, target: Serve) -> ServiceError:
        """What the client gets if no other node can serve; the rest is written down."""
        is_gone = isinstance(error, Silent) and not self._snapshot().is_up(target.node)
        away = is_gone or isinstance(error, Unreachable)
        self._journal.warning(
            "a node gave no answer",
            event="node.no_answer",
            node=target.node,
            # a node that is away fails every request alike: one line for all of them
            request=None if away else ask.request_id,
            cause=" <- ".join(cause_chain(error)),
        )
        if away:
            words = f"no node that has model {ask.model} answers"
            return error_for("no_healthy_node", words)
        return error_for("bad_gateway", "the node gave no valid answer")


def _request(ask: Ask, target: Serve) -> Request:
    headers = [
        ("Content-Type", "application/json"),
        ("Accept", "text/event-stream" if ask.stream else "application/json"),
        ("X-Request-Id", ask.request_id),
        ("X-Cortex-Usage", "1"),
    ]
    if ask.principal:
        headers.append((principal.HEADER, ask.principal))
    return Request("POST", ask.path, tuple(headers), ask.body_for(target.model))
