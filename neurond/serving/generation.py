"""One client's request while it runs: its choices, its end, its usage.

Front-end worker. The work belongs to the entries of the request table, not to the task
that reads the answer; `close` cancels what has not ended, on every way out.

    start ─▶ committed (or an error that is still a status) ─▶ changed … ─▶ ended

Invariant: after `close` no entry of it is in flight.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ipc.errors import ServiceError
from neurond.serving.choice import Choice, Order
from neurond.serving.entries import Channel, Entry, silence
from neurond.serving.requests import RequestTable

_MAX_AHEAD_IDS = 16_384
"""Submitted and not accepted yet; an id takes up to 5 of a ring's 256 KiB."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens; `completion` of all choices together, `cached` of the prompts, each of
    which counts once however many choices share it."""

    prompt: int
    completion: int
    cached: int


class Generation:
    def __init__(
        self, table: RequestTable, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._table = table
        self._clock = clock
        self._entries: dict[Choice, Entry] = {}
        self._groups: list[tuple[int, list[Choice]]] = []
        self._refusal: ServiceError | None = None
        self._changed = False
        self._waiter: asyncio.Future[None] | None = None
        self.choices: list[Choice] = []

    def start(self, order: Order, device: str, channel: Channel) -> None:
        """Submit every choice of a prompt, or none of any; once for each prompt.

        Raises ServiceError.
        """
        group: list[Choice] = []
        self._groups.append((order.submit.num_prompt, group))
        for index in range(order.num_choices):
            self._submit(order, index, group, device, channel)

    async def start_all(
        self,
        orders: Sequence[Order],
        device: str,
        channel: Channel,
        *,
        timeout_s: float,
    ) -> None:
        """As `start` for each, but long ones only as the device takes them: a ring
        has room for a few. Return once all are accepted. Raises ServiceError."""
        num_ahead = 0
        for order in orders:
            group: list[Choice] = []
            self._groups.append((order.submit.num_prompt, group))
            for index in range(order.num_choices):
                num_ahead += len(order.submit.ids)
                if num_ahead > _MAX_AHEAD_IDS and self.choices:
                    await self.committed(timeout_s)
                    num_ahead = len(order.submit.ids)
                self._submit(order, index, group, device, channel)
        await self.committed(timeout_s)

    def _submit(
        self,
        order: Order,
        index: int,
        group: list[Choice],
        device: str,
        channel: Channel,
    ) -> None:
        choice = self._choice(order)
        submit = replace(order.submit, choice=index)
        try:
            entry = self._table.submit(
                device, channel, submit, choice, may_park=bool(self.choices)
            )
        except ServiceError as error:
            self._refusal = error
            self.close()
            raise
        self._entries[choice] = entry
        self.choices.append(choice)
        group.append(choice)

    def _choice(self, order: Order) -> Choice:
        return Choice(
            order,
            clock=self._clock,
            on_change=self._on_change,
            on_stop=lambda choice: self._table.cancel(self._entries[choice]),
        )

    @property
    def error(self) -> ServiceError | None:
        """The first error of a choice; it is the whole answer's."""
        if self._refusal is not None:
            return self._refusal
        return next((c.error for c in self.choices if c.error is not None), None)

    @property
    def ended(self) -> bool:
        return self.error is not None or all(c.ended for c in self.choices)

    @property
    def usage(self) -> Usage:
        completion = sum(c.num_tokens for c in self.choices)
        prompt = sum(num_prompt for num_prompt, _ in self._groups)
        return Usage(prompt, completion, sum(_cached(*g) for g in self._groups))

    async def committed(self, timeout_s: float) -> None:
        """Return once the device has accepted it. Raises ServiceError."""
        deadline_s = self._clock() + timeout_s
        while not all(c.accepted or c.ended for c in self.choices):
            left_s = deadline_s - self._clock()
            if self.error is not None or left_s <= 0:
                break
            await self.changed(left_s)
        if self.error is not None:
            raise self.error
        if not all(c.accepted for c in self.choices):
            raise silence(delayed=any(e.is_delayed for e in self._entries.values()))

    async def changed(self, timeout_s: float) -> bool:
        """Wait for something to take; False after `timeout_s` of silence."""
        if not self._changed:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(timeout_s, self._wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        changed, self._changed = self._changed, False
        return changed

    def close(self) -> None:
        for entry in self._entries.values():
            self._table.cancel(entry)

    def _on_change(self) -> None:
        self._changed = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _cached(num_prompt: int, choices: list[Choice]) -> int:
    # what one choice computed is cached for the next; the first one paid for it
    least = min((c.num_cached for c in choices if c.accepted), default=0)
    return min(least, num_prompt)
