from __future__ import annotations

import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ipc.messages import Failed, Finished, Progress, Sampling
from neurond.device.pagedmodel import PagedModel
from tests.neurond.device import embedded, tiny
from tests.neurond.device.host import WORKER, Host, emitted, ends
from tests.neurond.device.rig import make_submit

SAMPLED = Sampling(temperature=0.9, top_p=0.95)


def make_prompts() -> list[tuple[int, ...]]:
    source = random.Random(1)
    lengths = (1, 5, 37, 100)
    prompts = [tuple(source.randrange(500) for _ in range(n)) for n in lengths]
    return [*prompts, (3, 4, 5) * 20]


PROMPTS = make_prompts()
MARK = 505
"""An id that only the prompt of a test has."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: tiny.build(family, root / family) for family in tiny.FAMILIES}


@pytest.fixture(scope="module")
def llama_host(folders: dict[str, Path]) -> Host:
    host = Host()
    host.load(folders["llama"])
    return host


@pytest.fixture
def host(llama_host: Host) -> Host:
    """Idle, its journal empty."""
    assert not llama_host.engine.busy
    llama_host.written.truncate(0)
    return llama_host


@pytest.mark.parametrize("family", ["llama", "qwen3_5"])
def test_greedy_tokens_equal_those_of_transformers(
    folders: dict[str, Path], family: str
) -> None:
    host = Host()
    host.load(folders[family])
    for prompt in PROMPTS:
        wanted = tiny.reference(folders[family], prompt, 16)
        assert host.run(prompt, max_tokens=16) == [wanted]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_s03_interleaved_sequences_equal_their_solo_runs(
    folders: dict[str, Path], family: str
) -> None:
    host = Host(prefill_chunk=16)
    host.load(folders[family])
    for sampling in (Sampling(temperature=0.0), SAMPLED):
        more = {"max_tokens": 8, "sampling": sampling}
        solo = [host.run(prompt, **more)[0] for prompt in PROMPTS]
        # the seed is the request's, its number among others is not
        assert host.run(*PROMPTS, **more) == solo


@pytest.mark.parametrize("family", ["llama"])
def test_prefill_in_chunks_equals_prefill_in_one_piece(
    folders: dict[str, Path], family: str
) -> None:
    hosts = [Host(prefill_chunk=chunk) for chunk in (512, 16, 1)]
    for host in hosts:
        host.load(folders[family])
    answers = [host.run(PROMPTS[2], max_tokens=6) for host in hosts]
    assert answers[1:] == answers[:1] * 2


def test_prefill_tells_its_progress(folders: dict[str, Path]) -> None:
    host = Host(prefill_chunk=40)
    host.load(folders["llama"])
    host.engine.submit(WORKER, make_submit(1, PROMPTS[3], max_tokens=1))
    progress = [m for m in host.drain() if isinstance(m, Progress)]
    assert progress == [Progress(1, 40, 100), Progress(1, 80, 100)]


def test_a_resumed_sequence_goes_on_with_the_same_tokens(host: Host) -> None:
    prompt = PROMPTS[2]
    for sampling in (Sampling(temperature=0.0), SAMPLED):
        more = {"max_tokens": 20, "sampling": sampling}
        [whole] = host.run(prompt, **more)
        resumed = make_submit(
            1, (*prompt, *whole[:7]), num_prompt=len(prompt), attempt=1, **more
        )
        host.engine.submit(WORKER, resumed)
        messages = host.drain()
        rows = [row for m in messages if hasattr(m, "rows") for row in m.rows]
        assert [row.start for row in rows] == list(range(7, 20))
        assert [row.ids[0] for row in rows] == whole[7:]


def test_the_seed_and_the_choice_decide_what_is_drawn(host: Host) -> None:
    more = {"max_tokens": 20, "sampling": Sampling(temperature=1.5)}
    prompt = PROMPTS[2]
    drawn = host.run(prompt, seed=5, **more)
    assert host.run(prompt, seed=5, **more) == drawn
    assert host.run(prompt, seed=6, **more) != drawn
    assert host.run(prompt, seed=5, choice=1, **more) != drawn


def test_a_cancel_between_steps_leaves_the_others_as_they_were(host: Host) -> None:
    more = {"max_tokens": 16}
    [solo] = host.run(PROMPTS[1], **more)
    for number in (1, 2):
        host.engine.submit(WORKER, make_submit(number, PROMPTS[1], **more))
    messages = [m for _, m in host.engine.step() + host.engine.step()]
    host.engine.cancel(WORKER, 1)
    messages += host.drain()
    assert emitted(messages, 2) == solo
    assert set(ends(messages)) == {2}


def test_min_tokens_holds_the_end_back(host: Host) -> None:
    [plain] = host.run(PROMPTS[1], max_tokens=10)
    stop = (plain[3],)
    assert len(host.run(PROMPTS[1], max_tokens=10, stop_ids=stop)[0]) <= 3
    late = Sampling(temperature=0.0, min_tokens=6)
    [held] = host.run(PROMPTS[1], max_tokens=10, stop_ids=stop, sampling=late)
    assert len(held) >= 6
    assert plain[3] not in held[:6]


def test_the_context_is_the_longest_a_sequence_gets(folders: dict[str, Path]) -> None:
    host = Host()
    host.load(folders["llama"], context=50)
    host.engine.submit(WORKER, make_submit(1, PROMPTS[2], max_tokens=10_000))
    end = ends(host.drain())[1]
    assert isinstance(end, Finished)
    assert (end.reason, end.num_prompt + end.num_emitted) == ("length", 50)


BAD = 499
"""A token whose embedding is NaN in the model below."""


@pytest.fixture
def damaged(folders: dict[str, Path], tmp_path: Path) -> Host:
    folder = Path(shutil.copytree(folders["qwen3"], tmp_path / "damaged"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][BAD] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    host = Host(prefill_chunk=32)
    host.load(folder)
    return host


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.0), SAMPLED])
def test_s02_nan_fails_its_row_and_the_others_go_on_unchanged(
    damaged: Host, sampling: Sampling
) -> None:
    more = {"max_tokens": 12, "sampling": sampling}
    prompts = [tuple(i for i in p if i != BAD) for p in PROMPTS[1:4]]
    solo = [damaged.run(prompt, **more)[0] for prompt in prompts]
    for number, prompt in enumerate((*prompts, (1, 2, BAD, 3))):
        damaged.engine.submit(WORKER, make_submit(number, prompt, **more))
    messages = damaged.drain()
    assert [emitted(messages, n) for n in range(3)] == solo
    failed = ends(messages)[3]
    assert isinstance(failed, Failed)
    assert failed.error[0] == "nan_logits"
    assert damaged.page.read().counters["nan_total"] == 1
    assert "model NOT marked poisoned" in damaged.written.getvalue()


def test_s02_nan_in_a_chunk_ends_the_request_and_nothing_of_it_is_shared(
    damaged: Host,
) -> None:
    """Also where more of the prompt is to come, and no token is drawn yet."""
    prompt = (1, 2, BAD, *(i for i in PROMPTS[3] if i != BAD))
    damaged.engine.submit(WORKER, make_submit(1, prompt))
    first = [message for _, message in damaged.engine.step()]
    failed = ends(first)[1]
    assert isinstance(failed, Failed)
    assert failed.error[0] == "nan_logits"
    damaged.engine.submit(WORKER, make_submit(2, prompt))
    assert damaged.engine.kv.budget.cached_bytes == 0
    assert isinstance(ends(damaged.drain())[2], Failed)
    good = make_submit(3, prompt[3:])
    assert not isinstance(damaged.engine.submit(WORKER, good), Failed)
    assert isinstance(ends(damaged.drain())[3], Finished)


def test_s02_a_shape_error_in_a_forward_fails_that_request_only(host: Host) -> None:
    more = {"max_tokens": 8}
    [solo] = host.run(PROMPTS[1], **more)
    module = host.engine.models["m"].body.module

    def break_one(_module: object, _args: object, named: dict[str, Any]) -> None:
        if MARK in named["input_ids"]:
            torch.randn(2, 3) @ torch.randn(4, 5)

    hook = module.register_forward_pre_hook(break_one, with_kwargs=True)
    for number, prompt in enumerate((PROMPTS[1], (*PROMPTS[2], MARK))):
        host.engine.submit(WORKER, make_submit(number, prompt, **more))
    messages = host.drain()
    hook.remove()
    failed = ends(messages)[1]
    assert isinstance(failed, Failed)
    assert failed.error[0] == "internal_error"
    assert "shapes cannot be multiplied" in failed.error[5][0]
    assert emitted(messages, 0) == solo
    assert host.written.getvalue().count("model NOT marked poisoned") == 1
    assert host.run(PROMPTS[2], **more)[0]


def test_a_token_id_out_of_range_never_reaches_the_model(host: Host) -> None:
    answer = host.engine.submit(WORKER, make_submit(1, (1, tiny.VOCAB_SIZE)))
    assert isinstance(answer, Failed)
    assert answer.error[0] == "invalid_request_error"
    assert not host.engine.busy


def test_running_out_of_host_memory_fails_that_request_only(host: Host) -> None:
    module = host.engine.models["m"].body.module

    def exhaust(_module: object, _arguments: object) -> None:
        torch.empty(1 << 46, dtype=torch.uint8)

    hook = module.register_forward_pre_hook(exhaust)
    host.engine.submit(WORKER, make_submit(1, PROMPTS[1]))
    failed = ends(host.drain())[1]
    hook.remove()
    assert isinstance(failed, Failed)
    assert failed.error[0] == "insufficient_vram"
    assert host.run(PROMPTS[1], max_tokens=3)[0]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The embedded model's."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(embedded.folder())


def encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    messages = [{"role": "user", "content": text}]
    rendered = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True
    )
    return tuple(rendered["input_ids"])


@pytest.mark.model
def test_the_embedded_model_knows_the_capital_of_france(tokenizer: Any) -> None:
    host = Host()
    host.load(embedded.folder())
    [ids] = host.run(encode(tokenizer, "What is the capital of France?"))
    assert tokenizer.decode(ids) == "The capital of France is Paris."
    grammar = '{"regex": "Rome, 1[0-9]{3}"}'
    question = encode(tokenizer, "When did Napoleon see the Colosseum?")
    free = encode(tokenizer, "Name three colours.")
    host.engine.submit(WORKER, make_submit(0, question, grammar=grammar))
    host.engine.submit(WORKER, make_submit(1, free, max_tokens=10))
    messages = host.drain()
    written = tokenizer.decode(emitted(messages, 0))
    assert re.fullmatch("Rome, 1[0-9]{3}", written)
    assert len(emitted(messages, 1)) == 10


@pytest.mark.model
def test_the_embedded_models_layers_write_what_transformers_writes(
    tokenizer: Any, tmp_path: Path
) -> None:
    folder = embedded.shallow(tmp_path / "model")
    host = Host()
    host.load(folder, dtype="float32")  # in bfloat16 near ties would fall either way
    prompt = encode(tokenizer, "🙂🚀 日本の首都 " + "the cat sat on the mat. " * 4)
    wanted = tiny.reference(folder, prompt, 8, eos=2, dtype=torch.float32)
    assert host.run(prompt, max_tokens=8) == [wanted]


def test_s82_a_recurrent_prefix_is_reused_only_where_its_state_was_saved(
    folders: dict[str, Path],
) -> None:
    host = Host(page_tokens=16, prefill_chunk=32)
    host.load(folders["qwen3_5"])
    first = PROMPTS[3]
    [answer] = host.run(first, max_tokens=6)
    turns = [
        (*first, *answer, 9, 8, 7),  # the conversation goes on
        (*first[:90], 3, 3, 3),  # leaves it in the middle
        (*first[:64], *PROMPTS[2]),
        first,
    ]
    for turn in turns:
        wanted = tiny.reference(folders["qwen3_5"], turn, 6)
        assert host.run(turn, max_tokens=6) == [wanted]
    assert host.page.read().counters["cached_tokens_total"] > 0


@pytest.mark.gpu
def test_the_same_engine_runs_on_cuda(folders: dict[str, Path]) -> None:
    for family, folder in folders.items():
        host = Host(kind="cuda")
        host.load(folder)
        wanted = [tiny.reference(folder, prompt, 12) for prompt in PROMPTS]
        assert host.run(*PROMPTS, max_tokens=12) == wanted, family
        memory = host.backend.memory()
        host.engine.drop_model("m")
        assert host.backend.memory().free_bytes > memory.free_bytes


@pytest.mark.gpu
def test_captured_steps_give_what_uncaptured_ones_give(
    folders: dict[str, Path],
) -> None:
    host = Host(kind="cuda")
    host.load(folders["llama"], dtype="bfloat16")
    model = host.backend._models["m"]
    assert isinstance(model, PagedModel)
    assert model.graphs is not None
    captured = host.run(*PROMPTS, max_tokens=12)
    model.graphs = None
    assert host.run(*PROMPTS, max_tokens=12) == captured
