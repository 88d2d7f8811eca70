"""A node's stream on its way to one client, after the commit point.

Gateway worker. Frames go through whole; the end is always said: the node's own terminal
event, or an error event of ours when the node dies, falls silent or talks nonsense. A
client that is gone ends the exchange with the node; the server (ipc.asgi) cuts off one
that reads nothing, which is the same here.

    frames … ─▶ terminal event of the node ─▶ end            outcome ok or broken
             └▶ node gone ─▶ error event ─▶ end              outcome broken
             └▶ client gone: close()                         outcome client_gone

Invariant: no stream ends without exactly one terminal event, unless its client left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cortexd.frames import Frames, FrameTooLarge
from cortexd.nodes.http import NodeError, Silent
from cortexd.nodes.pool import Answer
from cortexd.series import Account
from ipc.errors import ServiceError, cause_chain, error_for
from ipc.journal import Journal
from neurond.serving.openai import error_event


@dataclass(frozen=True, slots=True)
class Party:
    """Who talks to whom."""

    request_id: str
    node: str


class RelayStream:
    """An async iterator of whole frames; `close` on every way out."""

    def __init__(
        self,
        answer: Answer,
        account: Account,
        party: Party,
        *,
        journal: Journal,
        is_stopping: Callable[[], bool],
    ) -> None:
        self._answer = answer
        self._account = account
        self._party = party
        self._journal = journal
        self._is_stopping = is_stopping
        self._frames = Frames()
        self._first = b""
        self._ended = False

    async def start(self) -> None:
        """Wait for the first frame: until it is there, another node may take over.

        Raises NodeError.
        """
        while not self._first:
            data = await self._answer.read()
            if not data:
                raise NodeError("the stream ended before its first frame")
            self._first = self._fed(data)

    def __aiter__(self) -> RelayStream:
        return self

    async def __anext__(self) -> bytes:
        if self._ended:
            raise StopAsyncIteration
        try:
            data = await self._next()
        except NodeError as error:
            data = self._broken(error)
        if not data:
            raise StopAsyncIteration
        return data

    async def close(self) -> None:
        """The server calls it when it is done with the stream, or the client is."""
        self.release()

    def release(self) -> None:
        if not self._ended:
            self._end()
            self._account.end("client_gone", self._frames.usage)

    async def _next(self) -> bytes:
        """Some frames; b"" at the end. Raises NodeError."""
        if self._first:
            data, self._first = self._first, b""
            return data
        frames = self._frames
        while True:
            try:
                data = await self._answer.read()
            except NodeError:
                if not frames.terminal:
                    raise
                data = b""  # it said all that it had to say
            if data:
                if frames_now := self._fed(data):
                    return frames_now
            elif frames.terminal:
                return self._finish()
            else:
                raise NodeError("the stream ended without a terminal event")

    def _fed(self, data: bytes) -> bytes:
        try:
            whole = self._frames.feed(data)
        except FrameTooLarge as error:
            raise NodeError(str(error)) from error
        if self._frames.has_token:
            self._account.first_token()
        return whole

    def _finish(self) -> bytes:
        """The node said the end; what is left of its bytes goes along."""
        self._end()
        done = self._frames.terminal == "done"
        self._account.end("ok" if done else "broken", self._frames.usage)
        return self._frames.rest()

    def _broken(self, cause: NodeError) -> bytes:
        """Our error event; the frame that was begun is dropped."""
        error = self._told(cause)
        self._journal.warning(
            "stream broken",
            event="stream.broken",
            node=self._party.node,
            request=self._party.request_id,
            code=error.code,
            cause=" <- ".join(cause_chain(cause)),
        )
        self._end()
        self._account.end("broken", self._frames.usage)
        return error_event(error, self._party.request_id)

    def _told(self, cause: NodeError) -> ServiceError:
        """What the client may know."""
        if self._is_stopping():
            return error_for("shutting_down", "the gateway stopped meanwhile")
        if isinstance(cause, Silent):
            return error_for("bad_gateway", "the node stopped answering")
        return error_for("bad_gateway", "the node broke off in mid-answer")

    def _end(self) -> None:
        self._ended = True
        self._answer.release()
