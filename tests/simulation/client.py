"""A client of one request, on what a worker does between a body and its frames.

What it is shown must be a beginning of what an undisturbed answer shows, and it must
hear of exactly one end.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, cast

from ipc.errors import ServiceError, error_for
from ipc.messages import Submit
from neurond.device.fakescript import script_for
from neurond.frontend import admission
from neurond.frontend.stream import AnswerStream, StreamOptions, whole_answer
from neurond.serving.choice import Choice, Order, Shown
from neurond.serving.generation import Generation, Usage
from tests.neurond.device.rig import chat_ids, make_submit

if TYPE_CHECKING:
    from tests.simulation.plan import Wish
    from tests.simulation.worker import FrontEnd
    from tests.simulation.world import World

_RETRIED = ("model_recovering", "model_loading", "overloaded", "queue_full")
PATIENCE_S = 40.0
"""For how long it asks again."""


class _Pieces:
    """Ids are bytes."""

    def piece(self, token: int, *, first: bool) -> bytes | None:
        return bytes((token,)) if token < 256 else None

    def spelt(self, token: int, *, first: bool) -> bytes:
        return bytes((token & 255,))


class _Frames:
    """A line of JSON per frame."""

    def begin(self, index: int) -> bytes:
        return b""

    def shown(self, index: int, shown: Shown) -> bytes:
        return _line(["text", index, shown.text])

    def finish(self, index: int, reason: str) -> bytes:
        return _line(["finish", index, reason])

    def usage(self, usage: Usage) -> bytes:
        return _line(["usage", usage.prompt, usage.completion, usage.cached])


@dataclass(frozen=True, slots=True)
class Answer:
    """Of one choice, with the number of tokens that are counted."""

    text: str
    finish: str
    num_tokens: int


def order_of(wish: Wish) -> Order:
    ids = chat_ids(wish.text)
    submit = make_submit(0, ids, model=wish.model, max_tokens=wish.max_tokens)
    return Order(submit, wish.num_choices, wish.stops, _Pieces(), wish.streams)


@cache
def _undisturbed(
    prompt: tuple[int, ...], max_tokens: int, stops: tuple[str, ...]
) -> Answer:
    """What a choice shows when it is told the whole script at once."""
    order = Order(make_submit(0, prompt), 1, stops, _Pieces(), False)
    choice = Choice(
        order, clock=lambda: 0.0, on_change=lambda: None, on_stop=lambda _choice: None
    )
    ids = script_for(prompt, {"tokens": "echo"}, max_tokens).answer[:max_tokens]
    choice.on_tokens(ids, (), ())
    if choice.finish is None:
        choice.on_finished("length" if len(ids) == max_tokens else "stop", 0)
    num_tokens = choice.num_tokens if stops else len(ids)
    return Answer(choice.take().text, choice.finish or "", num_tokens)


class Client:
    """`outcome`: whole, left, cut, or the code of an error; "" while it goes on."""

    def __init__(self, world: World, wish: Wish) -> None:
        self.world = world
        self.wish = wish
        self.who = f"client {wish.number}"
        self.outcome = ""
        self.worker: FrontEnd | None = None
        self.began_s = 0.0
        self.is_committed = False
        self.order = order_of(wish)
        submit = self.order.submit
        self.expected = _undisturbed(submit.ids, wish.max_tokens, wish.stops)
        self._texts = [""] * wish.num_choices
        self._finishes = [""] * wish.num_choices

    def has_ended(self) -> bool:
        return bool(self.outcome)

    async def run(self) -> None:
        await asyncio.sleep(self.wish.at_s)
        self.began_s = self.world.clock()
        pause_s = 0.0
        while not self.outcome:
            try:
                await asyncio.sleep(pause_s)
                await self._once()
            except asyncio.CancelledError:
                self.outcome = "cut"
            except ServiceError as error:
                waited_s = self.world.clock() - self.began_s
                again = error.code in _RETRIED and waited_s < PATIENCE_S
                self.world.trace(self.who, f"{error.code}: {error.message}")
                if again and not self.is_committed:
                    pause_s = 1.0
                    continue
                self.outcome = error.code
                self.world.judge.failed(self, error)
        self.world.trace(self.who, f"ended: {self.outcome} {self._texts}")
        self._check_texts()

    async def _once(self) -> None:
        world = self.world
        self.worker = worker = world.workers[self.wish.number % len(world.workers)]
        generation = Generation(worker.table, clock=world.clock)
        try:
            await self._start(worker, generation)
            self.is_committed = True
            if self.wish.streams:
                await self._read(generation)
            else:
                self._take_whole(await whole_answer(generation), generation.usage)
        finally:
            generation.close()

    async def _start(self, worker: FrontEnd, generation: Generation) -> None:
        submit = self.order.submit
        fact = worker.model(submit.model) if worker.facts else None
        refusal = admission.refusal("serving", submit.model, fact) if fact else None
        line = worker.devices.pick(fact["devices"]) if fact else None
        if refusal is not None:
            raise refusal
        if line is None:
            raise error_for("model_recovering", "no device")
        if worker.is_quarantined(submit):
            raise error_for("request_quarantined", "known to kill")
        self.world.trace(self.who, f"asks {line.device} {line.generation}")
        await generation.start_all([self.order], line.device, line, timeout_s=1.0)

    async def _read(self, generation: Generation) -> None:
        options = StreamOptions(
            include_usage=True,
            count_usage=False,
            request_id="r",
            on_text=lambda: None,
            is_stopping=lambda: False,
        )
        stream = AnswerStream(generation, _Frames(), options, self.world.journal)
        frames = cast(AsyncGenerator[bytes, None], stream.frames())
        num_frames, is_over = 0, False
        async for data in frames:
            if is_over:
                self.world.judge.violate(f"{self.who}: {data!r} behind the end")
            is_over = self._take(data)
            num_frames += 1
            if num_frames == self.wish.stays:
                self.outcome = "left"
                await frames.aclose()
                return
            if self.wish.reads_s:
                await asyncio.sleep(self.wish.reads_s)
        if generation.error is not None:
            raise generation.error
        if not is_over:
            self.world.judge.violate(f"{self.who}: the stream stopped without an end")
        self.outcome = "whole"

    def _take(self, data: bytes) -> bool:
        """Whether the stream is over."""
        for line in data.splitlines():
            if line.startswith(b"data: "):
                return True
            if not line or line.startswith(b":"):
                continue
            kind, *rest = json.loads(line)
            if kind == "text":
                self._texts[rest[0]] += rest[1]
            elif kind == "finish":
                self._finishes[rest[0]] = rest[1]
            else:
                self._check_usage(Usage(*rest))
        return False

    def _take_whole(self, ended: list[tuple[Shown, str]], usage: Usage) -> None:
        self._texts = [shown.text for shown, _ in ended]
        self._finishes = [finish for _, finish in ended]
        self._check_usage(usage)
        self.outcome = "whole"

    def _check_usage(self, usage: Usage) -> None:
        num_prompt = self.order.submit.num_prompt
        completion = self.wish.num_choices * self.expected.num_tokens
        if (usage.prompt, usage.completion) != (num_prompt, completion):
            told = f"{usage}, not {num_prompt} and {completion}"
            self.world.judge.violate(f"{self.who}: usage is {told}")
        if not 0 <= usage.cached <= usage.prompt:
            self.world.judge.violate(f"{self.who}: cached is {usage.cached}")

    def _check_texts(self) -> None:
        """An error shows what was held back as it might have begun a stop string."""
        want = self.expected
        whole = _undisturbed(self.order.submit.ids, self.wish.max_tokens, ()).text
        is_error = self.outcome not in ("whole", "left", "cut")
        for text, finish in zip(self._texts, self._finishes, strict=True):
            if not (whole if is_error else want.text).startswith(text):
                told = f"shown {text!r}, no beginning of {want.text!r}"
                self.world.judge.violate(f"{self.who}: {told}")
            if self.outcome == "whole" and (text, finish) != (want.text, want.finish):
                told = f"whole with {text!r} {finish}, not {want.text!r} {want.finish}"
                self.world.judge.violate(f"{self.who}: {told}")


def _line(document: object) -> bytes:
    return json.dumps(document).encode() + b"\n"


def prompt_of(submit: Submit) -> tuple[int, ...]:
    return submit.ids[: submit.num_prompt]
