"""Prompts unlike random ids: repeated, correlated and special ones break numerics."""

from __future__ import annotations

import random


def make_prompts() -> list[list[int]]:
    """Repetitive, random, of one id, constant, with ids from the ends of the
    vocabulary, and slowly changing."""
    source = random.Random(1)
    return [
        [3, 4, 5] * 9,
        [source.randrange(1, 500) for _ in range(37)],
        [7],
        [9] * 19,
        [1, 2, 1, 2, 508, 509, 1, 2, 510, 511, 0] * 2,
        [100 + i // 4 for i in range(30)],
    ]
