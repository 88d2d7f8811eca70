"""By what a request that killed a device is known when it comes again (S16).

Front-end worker; pure. Of what was asked only the prompt counts, as the model reads it:
a client's retry has other sampling, another seed or another id, and kills all the same.

Invariant: the same on every host and in every build, as it travels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

_NUM_DIGITS = 32


def fingerprint(model: str, prompt: Sequence[int]) -> str:
    """32 hex digits of SHA-256 over the model's id and the prompt's token ids."""
    digest = hashlib.sha256(model.encode() + b"\0")
    digest.update(np.asarray(prompt, dtype="<u4").tobytes())
    return digest.hexdigest()[:_NUM_DIGITS]
