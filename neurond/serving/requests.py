"""The requests in flight of one worker: what was asked, what has been emitted.

Front-end worker (and the gateway's, for a local node). An entry keeps all that a
resubmission needs: prompt ids and emitted ids. It belongs to the generation of the
device that runs it, and its sink hears of it until it ends.

    submitted ──accepted──▶ accepted ──tokens──▶ accepted ──finished──▶ ended
        └────── failed, down, cancel ──────┴── failed, down, cancel ──────▶ ended

Invariants: an entry ends exactly once, and nothing is told about it afterwards. Every
record continues exactly where the last one stopped, else the entry fails. Ids are
never used twice in a worker's life. Deterministic: no clock, no loop.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

from ipc.channel import ChannelBroken
from ipc.errors import ServiceError, error_for, from_wire
from ipc.messages import (
    Accepted,
    Cancel,
    Failed,
    Finished,
    Progress,
    PromptScores,
    RingDown,
    RingUp,
    SlabsFree,
    Submit,
    TokenRow,
    Tokens,
    TopScores,
    Vector,
)
from ipc.ring import RecordTooLarge, RingFull
from neurond.retrying import retry_after_s


class State(Enum):
    SUBMITTED = "submitted"
    ACCEPTED = "accepted"
    ENDED = "ended"


NEXT: dict[tuple[State, str], State] = {
    (State.SUBMITTED, "accepted"): State.ACCEPTED,
    (State.SUBMITTED, "failed"): State.ENDED,
    (State.SUBMITTED, "down"): State.ENDED,
    (State.SUBMITTED, "cancel"): State.ENDED,
    (State.ACCEPTED, "progress"): State.ACCEPTED,
    (State.ACCEPTED, "scores"): State.ACCEPTED,
    (State.ACCEPTED, "tokens"): State.ACCEPTED,
    (State.ACCEPTED, "vector"): State.ACCEPTED,
    (State.ACCEPTED, "finished"): State.ENDED,
    (State.ACCEPTED, "failed"): State.ENDED,
    (State.ACCEPTED, "down"): State.ENDED,
    (State.ACCEPTED, "cancel"): State.ENDED,
}
"""A missing cell is a device that breaks the protocol: the entry fails."""


class Sink(Protocol):
    """Hears of one entry. Exactly one of `on_finished`, `on_failed` comes last.

    `logprobs` has one per id where they were asked for, else none; so has `top`. The
    scores of a prompt come in order, without gaps, from its second token on.
    """

    def on_accepted(self, position: int, cached: int) -> None: ...
    def on_tokens(
        self,
        ids: tuple[int, ...],
        logprobs: tuple[float, ...],
        top: tuple[TopScores, ...],
    ) -> None: ...
    def on_scores(self, scores: PromptScores) -> None: ...
    def on_vector(self, values: bytes) -> None: ...
    def on_finished(self, reason: str, cached: int) -> None: ...
    def on_failed(self, error: ServiceError) -> None: ...


Event = Accepted | Progress | PromptScores | Vector | Finished | Failed
"""What is said about one entry alone."""


class Channel(Protocol):
    """The way to one generation of a device."""

    @property
    def generation(self) -> int: ...
    def submit(self, message: RingDown) -> None: ...


@dataclass(slots=True, eq=False)
class Entry:
    submit: Submit
    device: str
    generation: int
    sink: Sink
    channel: Channel
    emitted: list[int] = field(default_factory=list)
    next_score: int = 1
    """The prompt token whose score comes next; the first has none."""
    state: State = State.SUBMITTED

    @property
    def num_left(self) -> int:
        """Tokens that may still come."""
        return max(0, self.submit.max_tokens - len(self.emitted))


class RequestTable:
    def __init__(self, *, first_id: int, max_entries: int) -> None:
        self._next_id = first_id
        self._max_entries = max_entries
        self._entries: dict[int, Entry] = {}
        self._per_device: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._entries)

    def in_flight(self, device: str) -> int:
        return self._per_device[device]

    def check_room(self, num_sequences: int = 1, token_s: float = 0.0) -> None:
        """Raises CapacityError queue_full: before any work is done for a request.

        `token_s` is how long a token takes, 0.0 = unknown: it says when to ask again.
        """
        num_missing = len(self._entries) + num_sequences - self._max_entries
        if num_missing > 0:
            ends_s = [token_s * entry.num_left for entry in self._entries.values()]
            raise error_for(
                "queue_full",
                "every queue place of this worker is taken",
                retry_after_s=retry_after_s(ends_s, num_missing),
            )

    def submit(
        self, device: str, channel: Channel, submit: Submit, sink: Sink
    ) -> Entry:
        """Send it; the id of `submit` is ours to choose.

        Raises ServiceError; then the sink hears nothing.
        """
        self.check_room()
        numbered = replace(submit, id=self._next_id)
        self._next_id += 1
        _send(channel, numbered)
        entry = Entry(numbered, device, channel.generation, sink, channel)
        self._entries[numbered.id] = entry
        self._per_device[device] += 1
        return entry

    def cancel(self, entry: Entry) -> None:
        """Nothing more is told about it. Harmless once it has ended."""
        if self._move(entry, "cancel"):
            self._send_cancel(entry.channel, entry.submit.id)

    def on_message(self, device: str, channel: Channel, message: RingUp) -> None:
        match message:
            case Tokens(rows=rows):
                for row in rows:
                    self._on_row(channel, row)
            case SlabsFree():
                pass  # the channel's business
            case _:
                entry = self._entries.get(message.id)
                if entry is not None:
                    self._on_event(entry, message)

    def on_down(self, device: str, generation: int) -> None:
        """This life of the device is over, and so are its requests."""
        for entry in list(self._entries.values()):
            if (entry.device, entry.generation) == (device, generation):
                seen = entry.state is State.ACCEPTED
                code = "device_fault" if seen else "model_recovering"
                error = error_for(code, "the device that served the request died")
                self._fail(entry, "down", error)

    def _on_row(self, channel: Channel, row: TokenRow) -> None:
        entry = self._entries.get(row.id)
        if entry is None:
            # cancelled: what is under way passes; a lost Cancel is sent again
            self._send_cancel(channel, row.id)
        elif row.start != len(entry.emitted):
            self._break(entry, f"tokens at {row.start}, not {len(entry.emitted)}")
        elif not _has_scores(row, entry.submit.sampling.logprobs):
            self._break(entry, f"logprobs {len(row.logprobs)}, not {len(row.ids)}")
        elif self._move(entry, "tokens"):
            entry.emitted.extend(row.ids)
            entry.sink.on_tokens(row.ids, row.logprobs, row.top)

    def _on_event(self, entry: Entry, message: Event) -> None:
        match message:
            case Accepted(position=position, cached=cached):
                if self._move(entry, "accepted"):
                    entry.sink.on_accepted(position, cached)
            case Progress():
                self._move(entry, "progress")
            case PromptScores():
                self._on_scores(entry, message)
            case Vector(values=values):
                if self._move(entry, "vector"):
                    entry.sink.on_vector(values)
            case Finished():
                self._on_finished(entry, message)
            case Failed(error=wire):
                self._fail(entry, "failed", from_wire(wire))

    def _on_scores(self, entry: Entry, message: PromptScores) -> None:
        end = message.start + len(message.logprobs)
        due = entry.next_score
        if message.start != due or end > entry.submit.num_prompt:
            self._break(entry, f"scores {message.start} to {end}, not from {due}")
        elif self._move(entry, "scores"):
            entry.next_score = end
            entry.sink.on_scores(message)

    def _on_finished(self, entry: Entry, message: Finished) -> None:
        if message.num_emitted != len(entry.emitted):
            emitted = f"{message.num_emitted}, not {len(entry.emitted)}"
            self._break(entry, f"finished after {emitted} tokens")
        elif self._move(entry, "finished"):
            entry.sink.on_finished(message.reason, message.num_cached)

    def _move(self, entry: Entry, event: str) -> bool:
        """Take the step of the table; False when it has ended or may not be taken."""
        if entry.state is State.ENDED:
            return False
        state = NEXT.get((entry.state, event))
        if state is None:
            self._break(entry, f"{event} while {entry.state.value}")
            return False
        entry.state = state
        if state is State.ENDED:
            del self._entries[entry.submit.id]
            self._per_device[entry.device] -= 1
        return True

    def _fail(self, entry: Entry, event: str, error: ServiceError) -> None:
        if self._move(entry, event):
            entry.sink.on_failed(error)

    def _break(self, entry: Entry, reason: str) -> None:
        """The device breaks the protocol for this entry: it is lost, others are not."""
        error = error_for(
            "internal_error",
            "the request was lost between front end and device",
            chain=(f"ProtocolViolation: request {entry.submit.id}: {reason}",),
        )
        self._send_cancel(entry.channel, entry.submit.id)
        self._fail(entry, "failed", error)

    def _send_cancel(self, channel: Channel, request: int) -> None:
        try:
            channel.submit(Cancel(request))
        except (RingFull, ChannelBroken):
            pass  # its next tokens ask again; a broken channel has no requests


def _has_scores(row: TokenRow, asked: int) -> bool:
    """Whether a row says what was asked for; see `Sampling.logprobs`."""
    num_scores = len(row.ids) if asked >= 0 else 0
    num_top = len(row.ids) if asked > 0 else 0
    return len(row.logprobs) == num_scores and len(row.top) in (num_scores, num_top)


def _send(channel: Channel, submit: Submit) -> None:
    try:
        channel.submit(submit)
    except RingFull as error:
        raise error_for("queue_full", "the device's request ring is full") from error
    except RecordTooLarge as error:
        raise error_for("request_too_large", "the prompt is too large") from error
    except ChannelBroken as error:
        raise error_for("model_recovering", "the device is coming back") from error
