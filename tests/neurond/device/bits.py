"""Every bit of the logits that a host's requests were drawn from."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from collections.abc import Sequence as Listing
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from neurond.device.backend import Work
from neurond.device.computing import Computing, Logits
from tests.neurond.device.host import WORKER, Host
from tests.neurond.device.prompts import make_prompts
from tests.neurond.device.rig import make_submit

Bits = dict[tuple[int, int], str]
"""By (request, position): a digest of the logits behind that position."""


class Spy:
    """Stands before a model that serves; notes what each wanted row was."""

    def __init__(self, inner: Computing) -> None:
        self.inner = inner
        self.bits: Bits = {}
        self.differing: set[tuple[int, int]] = set()

    def compute(self, works: Listing[Work]) -> Logits:
        logits = self.inner.compute(works)
        for index, work in enumerate(works):
            rows = logits.of(index)
            end = work.sequence.num_computed + work.num_ids
            for at, row in enumerate(rows, end - len(rows)):
                self._note((work.sequence.id, at), digest(row))
        return logits

    def _note(self, key: tuple[int, int], found: str) -> None:
        if self.bits.setdefault(key, found) != found:
            self.differing.add(key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def digest(row: torch.Tensor) -> str:
    raw = row.contiguous().view(torch.uint8).cpu().numpy().tobytes()
    return hashlib.blake2b(raw, digest_size=16).hexdigest()


@contextmanager
def spying(host: Host, model: str = "m") -> Iterator[Spy]:
    spy = Spy(host.backend._models[model])
    host.backend._models[model] = spy
    yield spy
    host.backend._models[model] = spy.inner


def main(folder: str) -> None:
    """Those of the prompts, each alone, by a process of its own."""
    host = Host(numerics="invariant", page_tokens=16)
    host.load(Path(folder), dtype="bfloat16")
    with spying(host) as spy:
        for number, ids in enumerate(make_prompts()):
            more = {"max_tokens": 6, "cache_salt": f"alone {number}"}
            host.engine.submit(WORKER, make_submit(number, tuple(ids), **more))
            host.drain()
    print(json.dumps(list(spy.bits.items())))


if __name__ == "__main__":
    main(sys.argv[1])
