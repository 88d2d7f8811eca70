"""How fast a model computes here, and how long a chunk may be beside running streams.

Device process, torch-free, pure. Fed with the duration of every step. A mixed step is
taken to cost what the same rows cost without the chunk, plus so much a token; that
price is measured where the chunks are, so what a chunk costs at any length (weights
read once more, another kernel) settles into it within a few steps.
"""

from __future__ import annotations

from dataclasses import dataclass

_WEIGHT = 0.25
"""Of the newest measurement."""

_STRETCH = 2.5
"""What a chunk may make of the streams' step; what it may make of it at most so that
a prompt's first token comes no later than `_FIRST_TOKEN_STRETCH` times its time alone.
"""
_MAX_STRETCH = 2.9
_FIRST_TOKEN_STRETCH = 1.8
_STINT_STRETCH = 2.6
_UNMEASURED_TOKENS = 64
_LEAST_TOKENS = 32
_TILE_TOKENS = 16
_WHOLE_TOKENS = 64
"""Chunks from here on show the speed of prefill alone."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Measured; 0.0 = not yet."""

    prefill_tokens_s: float = 0.0
    decode_steps_s: float = 0.0


class RateModel:
    """One model's step times."""

    def __init__(self) -> None:
        self._decode_s: dict[int, float] = {}
        self._last_decode_s = 0.0
        self.alone_token_s = 0.0
        self.mixed_token_s = 0.0

    def observe(self, num_rows: int, num_tokens: int, seconds: float) -> None:
        """A step of `num_rows` decode rows and `num_tokens` of prefill took so long."""
        if num_tokens == 0:
            bucket = num_rows.bit_length()
            known_s = self._decode_s.get(bucket, 0.0)
            self._decode_s[bucket] = self._last_decode_s = _mean(known_s, seconds)
        elif num_rows == 0:
            if num_tokens >= _WHOLE_TOKENS or not self.alone_token_s:
                token_s = seconds / num_tokens
                self.alone_token_s = _mean(self.alone_token_s, token_s)
        else:
            extra_s = max(0.0, seconds - self.decode_s(num_rows))
            token_s = max(1e-9, extra_s / num_tokens)
            self.mixed_token_s = _mean(self.mixed_token_s, token_s)

    def decode_s(self, num_rows: int) -> float:
        """A step of so many rows without a chunk; 0.0 = never measured."""
        if not self._decode_s:
            return 0.0
        wanted = num_rows.bit_length()
        nearest = min(self._decode_s, key=lambda bucket: abs(bucket - wanted))
        return self._decode_s[nearest]

    @property
    def rates(self) -> Rates:
        return Rates(_inverse(self.alone_token_s), _inverse(self._last_decode_s))

    def pause_s(self, base_s: float) -> float:
        """How long a step with a stint may take, where it takes `base_s` without."""
        return _STINT_STRETCH * base_s

    def chunk(self, most: int, base_s: float, *, mixed: bool) -> int:
        """Prompt tokens beside streams whose step takes `base_s` without them.

        `mixed`: they share the forward; otherwise the streams are another model's.
        """
        token_s = self.alone_token_s
        if mixed and self.mixed_token_s:
            token_s = self.mixed_token_s
        if not (base_s and token_s):
            return min(most, _UNMEASURED_TOKENS)
        wanted = _soon_enough(base_s, token_s, self.alone_token_s)
        room = (_STRETCH - 1) * base_s / token_s
        most_room = (_MAX_STRETCH - 1) * base_s / token_s
        tokens = int(max(room, min(wanted, most_room)))
        return min(most, max(_LEAST_TOKENS, tokens - tokens % _TILE_TOKENS))


def _soon_enough(base_s: float, token_s: float, alone_token_s: float) -> float:
    """Tokens per step with which the first token comes early enough."""
    left_s = _FIRST_TOKEN_STRETCH * alone_token_s - token_s
    return base_s / left_s if left_s > 0 else float("inf")


def _mean(known: float, value: float) -> float:
    return known + _WEIGHT * (value - known) if known else value


def _inverse(seconds: float) -> float:
    return 1 / seconds if seconds else 0.0
