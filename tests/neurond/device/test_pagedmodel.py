"""One forward for many: what a sequence gets must not depend on who is beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from ipc.errors import ServiceError
from ipc.messages import Sampling
from neurond.device.backend import Row
from neurond.device.pagedmodel import PagedModel
from neurond.device.varlen import Kernel
from tests.neurond.device import families, flash
from tests.neurond.device.prompts import make_prompts
from tests.neurond.device.served import CPU, Served

PROMPTS = make_prompts()
RANDOM = PROMPTS[1]
BAD = 499


def finish(served: Served, sequence: Any) -> list[int]:
    while sequence.num_emitted < sequence.submit.max_tokens:
        served.step((sequence, sequence.num_pending))
    served.end(sequence)
    return list(sequence.ids[sequence.submit.num_prompt :])


def test_a_shared_prefix_gives_the_same_tokens_as_computing_it() -> None:
    served = Served(families.build("llama"))
    [solo] = served.generate([RANDOM], 6)
    first = served.start(RANDOM, 6)
    served.step((first, len(RANDOM)))
    second = served.start(RANDOM, 6)
    kept = 30  # three whole pages and six tokens of the fourth
    served.computing.copy_page(first.pages[3], second.pages[3], kept - 24)
    second.pages[:3] = first.pages[:3]
    second.num_computed = kept
    assert finish(served, second) == solo
    assert finish(served, first) == solo


def test_a_copied_page_has_the_first_tokens_and_no_more() -> None:
    served = Served(families.build("llama"))
    first = served.start(RANDOM, 6)
    served.step((first, len(RANDOM)))
    spare = served.free.pop()
    served.computing.copy_page(first.pages[0], spare, 5)
    pool = served.computing._pool  # type: ignore[attr-defined]
    keys, _ = pool.groups[0].tokens(0)
    copied, source = keys[spare * 8 :][:8], keys[first.pages[0] * 8 :][:8]
    assert torch.equal(copied[:5], source[:5])
    assert not copied[5:].any()
    served.computing.clear_pages([spare, first.pages[0]])
    assert not copied.any()
    assert not source.any()


@pytest.mark.parametrize("name", ["llama", "qwen3_5", "gemma3"])
def test_s02_nan_stays_in_its_row(name: str) -> None:
    module = families.build(name, tie_word_embeddings=False)
    served = Served(module)
    healthy = [p for p in PROMPTS if BAD not in p]
    solo = [served.generate([prompt], 6)[0] for prompt in healthy]
    module.get_input_embeddings().weight.data[BAD] = float("nan")
    running = [served.start(prompt, 6) for prompt in healthy]
    bad = served.start([5, BAD, 6], 6)
    found = served.step(
        *[(s, s.num_pending) for s in (*running[:3], bad, *running[3:])]
    )
    assert isinstance(found[3], ServiceError)
    assert found[3].code == "nan_logits"
    for _ in range(5):
        found = served.step((bad, 3), *[(s, s.num_pending) for s in running])
        assert isinstance(found[0], ServiceError)
    assert [s.ids[s.submit.num_prompt :] for s in running] == solo
    served.end(bad)
    served.free.sort(key=lambda page: page not in bad.pages)  # used again at once
    assert served.generate(healthy[:2], 6) == solo[:2]


@contextmanager
def exhausted(layer: Any) -> Iterator[None]:
    """The layer's forward runs out of memory."""

    def raise_it(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory. Tried to allocate 2.00 GiB")

    hook = layer.register_forward_pre_hook(raise_it)
    yield
    hook.remove()


@pytest.mark.parametrize("name", ["llama", "qwen3_5", "deepseek_v3"])
def test_a_forward_out_of_memory_leaves_everyone_as_before(name: str) -> None:
    module = families.build(name)
    served = Served(module)
    solo = served.generate(PROMPTS[:3], 6)
    running = [served.start(prompt, 6) for prompt in PROMPTS[:3]]
    served.step((running[0], 9), (running[1], len(PROMPTS[1])))
    for _ in range(5):
        plan = [(s, s.num_pending) for s in running if s.num_emitted < 6]
        with exhausted(module.model.layers[-1].mlp), pytest.raises(RuntimeError):
            served.step(*plan)
        served.step(*plan)
    assert [finish(served, sequence) for sequence in running] == solo


def test_s82_a_saved_state_serves_where_it_was_saved_again_and_again() -> None:
    served = Served(families.build("qwen3_5"))
    [solo] = served.generate([RANDOM], 6)
    first = served.start(RANDOM, 6)
    served.step((first, 16))
    state = served.computing.save_state(first)
    assert sum(t.nbytes for t in state) == served.computing.spec.state_bytes
    assert finish(served, first) == solo
    forgotten = [torch.zeros_like(tensor) for tensor in state]
    assert restart(served, first.pages, forgotten) != solo  # it does matter
    for _ in range(2):  # the state is copied, not consumed
        assert restart(served, first.pages, state) == solo


def restart(served: Served, pages: list[int], state: Any) -> list[int]:
    """The answer to RANDOM from its 17th id on, over the two first of those pages."""
    again = served.start(RANDOM, 6)
    again.pages[:2] = pages[:2]
    served.computing.load_state(again, state)
    again.num_computed = 16
    return finish(served, again)


def test_states_of_more_sequences_than_were_foreseen() -> None:
    served = Served(families.build("qwen3_5"))
    prompts = [[i + 1, 2 * i + 3, 7] for i in range(11)]
    solo = [served.generate([prompt], 3)[0] for prompt in prompts]
    assert served.generate(prompts, 3) == solo


@pytest.mark.parametrize("chunk", [64, 6, 1])
def test_prompt_scores_do_not_depend_on_chunks(chunk: int) -> None:
    module = families.build("qwen3")
    with torch.inference_mode():
        logits = module(torch.tensor([RANDOM])).logits[0].log_softmax(-1)
    wanted = logits[:-1].gather(1, torch.tensor(RANDOM[1:])[:, None])[:, 0]
    served = Served(module)
    sequence = served.start(RANDOM, 2, sampling=Sampling(0.0, prompt_logprobs=1))
    other = served.start(PROMPTS[0], 50)
    found: list[tuple[float, Any]] = []
    while sequence.num_emitted < 1:
        works = (other, other.num_pending), (sequence, min(chunk, sequence.num_pending))
        outcome = served.step(*works)[1]
        assert isinstance(outcome, Row)
        found += outcome.prompt
    assert torch.allclose(torch.tensor([own for own, _ in found]), wanted, atol=1e-4)
    assert [top[0][0] for _, top in found] == logits[:-1].argmax(-1).tolist()


# -- the kernel with page tables, by a reference of the same signature


KERNEL = Kernel(flash.reference, 8, None, dtypes=(torch.float32,))


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral", "gpt_oss", "gemma2"])
def test_the_page_table_says_the_same_as_the_stretches(name: str) -> None:
    wanted = Served(families.build(name)).generate(PROMPTS, 6)
    served = Served(families.build(name), scattered=True, kernel=KERNEL)
    assert served.paged
    assert served.generate(PROMPTS, 6, chunk=9) == wanted


def test_a_kernel_that_computes_something_else_is_not_used() -> None:
    def wrong(*args: Any, **named: Any) -> Any:
        return flash.reference(*args, **{**named, "seqused_k": named["seqused_k"] - 1})

    def refusing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("must be both set or both not set")

    assert KERNEL.works(CPU)
    for function in (wrong, refusing):
        assert not Kernel(function, 8, None, dtypes=(torch.float32,)).works(CPU)


class Recorder:
    """Repeats a step by calling it: its inputs are a buffer, its output a tensor."""

    def __init__(self) -> None:
        self.num_replays = 0

    def record(
        self, step: Callable[[], torch.Tensor]
    ) -> tuple[Callable[[], None], torch.Tensor]:
        output = step().clone()

        def replay() -> None:
            self.num_replays += 1
            output.copy_(step())

        return replay, output

    def upload(self, numbers: list[int], buffer: torch.Tensor) -> None:
        buffer.copy_(torch.tensor(numbers))


def test_captured_steps_filled_up_with_spare_rows_change_nothing() -> None:
    wanted = Served(families.build("llama")).generate(PROMPTS, 12)
    served = Served(families.build("llama"), scattered=True, kernel=KERNEL)
    model = served.computing
    assert isinstance(model, PagedModel)
    recorder = Recorder()
    with torch.inference_mode():
        steps = list(model.capture(recorder, 8, 64))
    assert steps[-1] == (len(steps), len(steps)) == (4, 4)  # 1, 2, 4, 8 rows
    assert served.generate(PROMPTS, 12) == wanted
    assert recorder.num_replays > 10
