"""A device process that gets no more memory from its kernel: who asked for it ends.

The model's vocabulary is large, so that a prompt with scores and a draw from a sorted
distribution each need more than what is left, and greedy rows don't.
"""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipc.child import close_fds_except, die_with_parent
from ipc.messages import Finished, Hello, Sampling, Stop
from ipc.status import Phase
from tests.harness import ROOT
from tests.neurond.device import families
from tests.neurond.device.rig import Forked, Rig, WorkerSide, error_code, wait_for

VOCAB_SIZE = 200_000
LEFT_BYTES = 6 << 20
"""Two MiB are enough for greedy rows; the sorted draw takes more than eight."""

SORTED = Sampling(temperature=2.0, typical_p=0.9, top_p=0.999)
SCORED = Sampling(temperature=0.0, prompt_logprobs=3)
OTHERS = {1: (5, 6, 7) * 4, 2: (9,) * 11, 3: tuple(range(100, 130))}
VICTIM = 4
PROMPT = tuple(range(40, 90))
NUM_TOKENS = 40
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
_SETTINGS = {"devices": {"threads": 1}}
_CODE = """
from neurond.device import worker
worker.main("cpu-0", "cpu", 1, {}, {}, {})
"""


def start(link_fd: int, page_fd: int) -> Forked:
    """A device whose large blocks go back to the kernel as soon as they are free.

    With a heap of its own: what earlier tests freed is in a fork's, under any limit.
    """
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        die_with_parent(parent)
        close_fds_except((link_fd, page_fd))
        for fd in (link_fd, page_fd):
            os.set_inheritable(fd, True)
        code = _CODE.format(link_fd, page_fd, _SETTINGS)
        environ = {**os.environ, "PYTHONPATH": str(ROOT), **_MALLOC}
        os.execve(sys.executable, [sys.executable, "-c", code], environ)
    return Forked(pid)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("models") / "wide"
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "tie_word_embeddings": True}
    families.build("llama", vocab_size=VOCAB_SIZE, **sizes).save_pretrained(target)
    return target


@pytest.fixture
def device(make_rig: Callable[..., Rig], folder: Path) -> Iterator[Rig]:
    """With its model; it must end as if nothing had happened."""
    rig = make_rig(start=start)
    rig.wait_report(Hello)
    rig.load("m", folder)
    yield rig
    rig.order(Stop())
    assert rig.wait_exit() == 0


def data_bytes(pid: int) -> int:
    """What RLIMIT_DATA counts."""
    found = re.search(r"VmData:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) << 10


def ask(side: WorkerSide, request: int, ids: tuple[int, ...], **more: object) -> None:
    side.ask(request, "", ids=ids, **{"max_tokens": NUM_TOKENS, **more})


def alone(side: WorkerSide) -> list[list[int]]:
    for request, ids in OTHERS.items():
        ask(side, request, ids)
        side.wait_end(request)
    return [side.ids(request) for request in OTHERS]


@pytest.mark.parametrize(("greed", "where"), [(SCORED, "prefill"), (SORTED, "decode")])
def test_without_memory_only_who_asked_for_it_ends(
    device: Rig, greed: Sampling, where: str
) -> None:
    side = device.attach(1)
    wanted = alone(side)
    wait_for(lambda: device.page.read().phase is Phase.IDLE, "the last step's end")
    most_bytes = data_bytes(device.pid) + LEFT_BYTES
    for request, ids in OTHERS.items():
        ask(side, 10 + request, ids, cache_salt="again")
    if where == "decode":
        ask(side, VICTIM, PROMPT, sampling=greed, max_tokens=400)
        wait_for(lambda: side.ids(VICTIM), "its first token")
    _, hard = resource.prlimit(device.pid, resource.RLIMIT_DATA)
    resource.prlimit(device.pid, resource.RLIMIT_DATA, (most_bytes, hard))
    if where == "prefill":
        ask(side, VICTIM, PROMPT, sampling=greed)

    assert error_code(side.wait_end(VICTIM)) == "insufficient_vram"
    assert bool(side.ids(VICTIM)) == (where == "decode")
    for request in OTHERS:
        assert isinstance(side.wait_end(10 + request), Finished)
    assert [side.ids(10 + request) for request in OTHERS] == wanted
    ask(side, 20, PROMPT)  # under the limit still
    assert isinstance(side.wait_end(20), Finished)
    assert device.page.read().counters["out_of_memory_total"] >= 1
