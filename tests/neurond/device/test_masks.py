from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer

from ipc.errors import ServiceError
from ipc.messages import Sampling
from neurond import grammar
from neurond.device.backend import Resident, Row
from neurond.device.compilations import Compilations, compiled
from neurond.device.masks import Masks
from neurond.device.sampler import Sampler
from neurond.device.sequence import Sequence
from tests.neurond.device import tiny, tinytokenizer
from tests.neurond.device.rig import make_submit, wait_for

VOCAB_SIZE = tiny.VOCAB_SIZE
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {
            "type": "array",
            "items": {"enum": ["red", "green"]},
            "minItems": 1,
            "maxItems": 3,
        },
        "address": {
            "type": "object",
            "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["zip"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "tags", "address"],
    "additionalProperties": False,
}
NESTED = grammar.write(grammar.JSON_SCHEMA, SCHEMA)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizer")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return tinytokenizer.write(folder)


@pytest.fixture(scope="module")
def masks(folder: Path, tokenizer: Tokenizer) -> Iterator[Masks]:
    made = Masks(folder, VOCAB_SIZE, {tiny.EOS})
    yield made
    made.close()


def bound(
    text: str = NESTED, *, emitted: tuple[int, ...] = (), seed: int = 1, **more: Any
) -> Sequence:
    model = Resident("m", 4096, VOCAB_SIZE, frozenset({tiny.EOS}), 0, {})
    sampling = Sampling(**{k: more.pop(k) for k in list(more) if k in _SAMPLING})
    submit = make_submit(
        1,
        (9, *emitted),
        grammar=text,
        num_prompt=1,
        seed=seed,
        sampling=sampling,
        **more,
    )
    return Sequence(1, submit, model, 0.0)


_SAMPLING = {"temperature", "min_tokens", "ignore_eos"}


def noise(sequence: Sequence) -> torch.Tensor:
    """Logits that depend on the ids alone, as a model's do."""
    made = torch.Generator().manual_seed(hash(tuple(sequence.ids)) % 2**31)
    return torch.randn(VOCAB_SIZE, generator=made) * 3


def step(masks: Masks, sampler: Sampler, running: list[Sequence]) -> list[str | None]:
    """One token for each: how each has ended, if it has."""
    filling = masks.begin(running)
    logits = torch.stack([noise(sequence) for sequence in running])
    outcomes = sampler.draw(logits, running, filling.take())
    ends: list[str | None] = []
    for sequence, outcome in zip(running, outcomes, strict=True):
        if isinstance(outcome, ServiceError):
            ends.append(outcome.code)
            continue
        assert outcome.token is not None
        masks.accept(sequence, outcome.token)
        ends.append(sequence.append(outcome.token))
    return ends


def finish(masks: Masks, sequence: Sequence) -> str:
    sampler = Sampler(torch.device("cpu"))
    while True:
        (end,) = step(masks, sampler, [sequence])
        if end is not None:
            return end


def text_of(tokenizer: Tokenizer, sequence: Sequence) -> str:
    return str(tokenizer.decode(sequence.ids[1:], skip_special_tokens=False))


def allowed(masks: Masks, sequence: Sequence) -> set[int]:
    bitmask = masks.begin([sequence]).take()
    assert bitmask is not None
    bits = np.unpackbits(bitmask[0].view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def is_valid(document: Any) -> bool:
    """The schema by hand."""
    return (
        list(document) == ["name", "age", "tags", "address"]
        and isinstance(document["name"], str)
        and len(document["name"]) <= 6
        and isinstance(document["age"], int)
        and 0 <= document["age"] <= 150
        and 1 <= len(document["tags"]) <= 3
        and set(document["tags"]) <= {"red", "green"}
        and list(document["address"]) == ["zip"]
        and re.fullmatch("[0-9]{5}", document["address"]["zip"]) is not None
    )


@pytest.mark.parametrize("seed", range(8))
def test_a_schema_always_gives_a_valid_document(
    masks: Masks, tokenizer: Tokenizer, seed: int
) -> None:
    sequence = bound(seed=seed, temperature=1.5)
    prepare(masks, sequence)
    assert finish(masks, sequence) == "stop"
    assert is_valid(json.loads(text_of(tokenizer, sequence)))


def test_a_random_model_writes_a_valid_document(
    masks: Masks, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny.build("llama", tmp_path)).eval()
    sequence = bound(temperature=0.7)
    prepare(masks, sequence)
    sampler, end = Sampler(torch.device("cpu")), None
    while end is None:
        filling = masks.begin([sequence])
        with torch.inference_mode():
            logits = model(torch.tensor([sequence.ids])).logits[:, -1]
        (row,) = sampler.draw(logits, [sequence], filling.take())
        assert isinstance(row, Row)
        assert row.token is not None
        masks.accept(sequence, row.token)
        end = sequence.append(row.token)
    assert end == "stop"
    assert is_valid(json.loads(text_of(tokenizer, sequence)))


@pytest.mark.parametrize(
    ("kind", "value", "pattern"),
    [
        (grammar.REGEX, "(yes|no)[0-9]{2,4}!", "(yes|no)[0-9]{2,4}!"),
        (grammar.REGEX, "^a+/b{1,3}$", "a+/b{1,3}"),
        (grammar.LARK, 'start: "<" n ("," n){0,2} ">"\nn: /[0-9]{1,3}/', "<[0-9,]+>"),
    ],
)
def test_regular_expressions_and_lark_grammars_hold(
    masks: Masks, tokenizer: Tokenizer, kind: str, value: str, pattern: str
) -> None:
    for seed in range(5):
        sequence = bound(grammar.write(kind, value), seed=seed)
        prepare(masks, sequence)
        assert finish(masks, sequence) == "stop"
        assert re.fullmatch(pattern, text_of(tokenizer, sequence))


def test_any_json_object_means_an_object(masks: Masks, tokenizer: Tokenizer) -> None:
    first = allowed(masks, prepared(masks, grammar.write(grammar.JSON_OBJECT, True)))
    assert tokenizer.decode(sorted(first)) == "{"


def prepare(masks: Masks, sequence: Sequence) -> None:
    masks.prepare(sequence)
    wait_for(lambda: masks.is_ready(sequence), "its grammar")


def prepared(masks: Masks, text: str, **more: Any) -> Sequence:
    sequence = bound(text, **more)
    prepare(masks, sequence)
    return sequence


def test_resumed_anywhere_it_ends_as_if_nothing_had_happened(masks: Masks) -> None:
    whole = prepared(masks, NESTED, temperature=1.3)
    finish(masks, whole)
    emitted = tuple(whole.ids[1:])
    assert len(emitted) > 40
    for cut in range(0, len(emitted) + 1, 16):
        resumed = prepared(masks, NESTED, emitted=emitted[:cut], temperature=1.3)
        assert finish(masks, resumed) == "stop"
        assert resumed.ids == whole.ids


def test_what_was_emitted_must_follow_the_grammar(masks: Masks) -> None:
    with pytest.raises(ServiceError) as caught:
        prepared(masks, NESTED, emitted=(5, 6, 7))
    assert caught.value.code == "grammar_dead_end"


def test_the_end_is_allowed_exactly_where_the_grammar_may_end(masks: Masks) -> None:
    letter = ord("a") - ord("!")  # the alphabet begins there
    sequence = prepared(masks, grammar.write(grammar.REGEX, "aa?"), stop_ids=(300,))
    assert allowed(masks, sequence) == {letter}
    masks.accept(sequence, letter)
    assert allowed(masks, sequence) == {letter, tiny.EOS, 300}
    masks.accept(sequence, letter)
    assert allowed(masks, sequence) == {tiny.EOS, 300}


def test_special_tokens_and_ids_without_a_token_never_come(masks: Masks) -> None:
    anything = prepared(masks, grammar.write(grammar.REGEX, "(.|\n)*"))
    ids = allowed(masks, anything)
    assert tiny.EOS in ids
    assert len(ids) > 150
    assert not ids & set(range(258, 511))


def test_after_the_end_only_the_end_may_come_where_it_is_ignored(masks: Masks) -> None:
    text = grammar.write(grammar.REGEX, "ab")
    sequence = prepared(masks, text, ignore_eos=True, max_tokens=6)
    assert finish(masks, sequence) == "length"
    assert sequence.ids[3:] == [tiny.EOS] * 4
    resumed = prepared(masks, text, ignore_eos=True, emitted=tuple(sequence.ids[1:5]))
    assert allowed(masks, resumed) == {tiny.EOS}


def test_an_end_that_is_banned_and_nothing_else_to_say_is_a_dead_end(
    masks: Masks,
) -> None:
    sequence = prepared(masks, grammar.write(grammar.REGEX, "ab"), min_tokens=9)
    assert finish(masks, sequence) == "grammar_dead_end"
    assert sequence.num_emitted == 2


def test_a_grammar_that_grows_too_complex_fails_its_own_row(masks: Masks) -> None:
    properties = {f"p{n}": {"type": "string"} for n in range(900)}
    wide = grammar.write(grammar.JSON_SCHEMA, {"properties": properties})
    grammar.check(wide)  # it begins well
    broken, neighbour = prepared(masks, wide), prepared(masks, NESTED)
    brace = min(allowed(masks, neighbour))
    broken.append(brace)
    masks.accept(broken, brace)

    ends = step(masks, Sampler(torch.device("cpu")), [broken, neighbour])

    assert ends == ["grammar_dead_end", None]
    assert "max is" in broken.grammar.error.message


def test_one_grammar_in_a_batch_changes_no_neighbour(masks: Masks) -> None:
    sampler = Sampler(torch.device("cpu"))
    plain = [bound("", seed=seed, max_tokens=12) for seed in (1, 2, 3, 4)]
    alone = [bound("", seed=seed, max_tokens=12) for seed in (1, 2, 3, 4)]
    running = [*plain[:2], prepared(masks, NESTED, temperature=1.0), *plain[2:]]
    for _ in range(12):
        step(masks, sampler, running)
    for sequence in alone:
        assert masks.begin([sequence]).take() is None
        for _ in range(12):
            step(masks, sampler, [sequence])
    assert [s.ids for s in plain] == [s.ids for s in alone]


def test_more_rows_than_tokens_and_fewer(folder: Path, tokenizer: Tokenizer) -> None:
    text = grammar.write(grammar.REGEX, "(.|\n)*")
    for vocab_size in (600, 300):  # the tokenizer has 512
        padded = Masks(folder, vocab_size, {tiny.EOS, 7})
        sequence = bound(text)
        prepare(padded, sequence)
        bitmask = padded.begin([sequence]).take()
        assert bitmask is not None
        assert bitmask.shape == (1, -(-vocab_size // 32))
        logits = torch.zeros(1, vocab_size)
        logits[0, vocab_size - 1] = 9.0
        logits[0, 50] = 5.0
        greedy = bound(text, temperature=0.0)
        greedy.grammar = sequence.grammar
        sampler = Sampler(torch.device("cpu"))
        assert sampler.draw(logits, [greedy], bitmask) == [Row(50)]
        padded.close()


def test_the_tokenizer_can_wait_for_the_first_grammar(
    folder: Path, tokenizer: Tokenizer
) -> None:
    late = Masks(folder, VOCAB_SIZE, {tiny.EOS}, build_now=False)
    prepare(late, bound(""))
    assert len(allowed(late, prepared(late, NESTED))) == 1
    late.close()


def test_an_idle_device_builds_the_tokenizer_before_a_grammar_does() -> None:
    built = threading.Semaphore(0)

    def build() -> LLTokenizer:
        built.release()
        raise OSError("no files")

    late = Compilations(build, frozenset({tiny.EOS}), build_now=False)
    assert not built.acquire(timeout=0)
    late.warm()
    assert built.acquire(timeout=10)
    late.warm()
    late.start(NESTED, [])
    late.close()
    assert not built.acquire(timeout=0)


def test_a_model_without_a_tokenizer_has_no_structured_output(tmp_path: Path) -> None:
    bare = Masks(tmp_path, VOCAB_SIZE, {tiny.EOS})
    with pytest.raises(ServiceError) as caught:
        prepare(bare, bound())
    assert caught.value.code == "unsupported_parameter"
    prepare(bare, bound(""))  # anything else goes on
    bare.close()


def test_what_does_not_compile_is_refused_in_the_compilers_words(masks: Masks) -> None:
    with pytest.raises(ServiceError, match="unclosed group") as caught:
        prepared(masks, grammar.write(grammar.REGEX, "("))
    assert caught.value.status == 400


class Stuck:
    """A matcher that hangs in its mask until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def unsafe_compute_mask_ptr(self, _pointer: int, _num_bytes: int) -> None:
        self.go.wait(30)

    def is_error(self) -> bool:
        return False

    def is_accepting(self) -> bool:
        return False


class SlowCompiler:
    """Compiles "slow" grammars when it is let go, others at once."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self.texts: list[str] = []

    def __call__(self, tokenizer: LLTokenizer, text: str) -> LLMatcher:
        self.texts.append(text)
        if "slow" in text:
            self.begun.set()
            self.go.wait(30)
        return compiled(tokenizer, text)


SLOW = grammar.write(grammar.REGEX, "slow")


def test_no_mask_waits_for_a_compilation(folder: Path, tokenizer: Tokenizer) -> None:
    compiler = SlowCompiler()
    masks = Masks(folder, VOCAB_SIZE, {tiny.EOS}, compiler=compiler, compile_s=60)
    running, waiting = prepared(masks, NESTED), bound(SLOW)
    masks.prepare(waiting)
    assert compiler.begun.wait(30)
    for _ in range(5):
        assert step(masks, Sampler(torch.device("cpu")), [running]) == [None]
        assert not masks.is_ready(waiting)
    compiler.go.set()
    wait_for(lambda: masks.is_ready(waiting))
    assert finish(masks, waiting) == "stop"
    assert text_of(tokenizer, waiting).startswith("slow")
    masks.close()


def test_a_compilation_over_time_is_left_behind_and_those_behind_it_begin_again(
    folder: Path, tokenizer: Tokenizer
) -> None:
    compiler = SlowCompiler()
    masks = Masks(folder, VOCAB_SIZE, {tiny.EOS}, compiler=compiler, compile_s=0.2)
    late, behind = bound(SLOW), bound(NESTED)
    masks.prepare(late)
    masks.prepare(behind)
    wait_for(lambda: masks.is_ready(behind))
    with pytest.raises(ServiceError, match="too long to compile") as caught:
        masks.is_ready(late)
    assert caught.value.status == 400
    assert allowed(masks, behind)
    compiler.go.set()
    masks.close()


def test_who_leaves_takes_its_compilation_along(
    folder: Path, tokenizer: Tokenizer
) -> None:
    """One that has begun can't be stopped; its time is bounded all the same."""
    compiler = SlowCompiler()
    masks = Masks(folder, VOCAB_SIZE, {tiny.EOS}, compiler=compiler, compile_s=0.2)
    begun, queued = bound(SLOW), bound(grammar.write(grammar.REGEX, "slower"))
    last = bound(NESTED)
    for sequence in (begun, queued, last):
        masks.prepare(sequence)
    assert compiler.begun.wait(30)
    masks.release(begun)
    masks.release(queued)
    wait_for(lambda: masks.is_ready(last))
    assert compiler.texts == [SLOW, NESTED]
    compiler.go.set()
    masks.close()


def test_a_mask_that_never_comes_costs_its_row_alone(
    folder: Path, tokenizer: Tokenizer
) -> None:
    masks = Masks(folder, VOCAB_SIZE, {tiny.EOS}, fill_s=0.2)
    first, hung, last = (prepared(masks, NESTED) for _ in range(3))
    stuck = hung.grammar.matcher = Stuck()
    ends = step(masks, Sampler(torch.device("cpu")), [first, hung, last])
    assert ends == [None, "grammar_dead_end", None]
    stuck.go.set()
    assert "too long" in hung.grammar.error.message
    assert allowed(masks, last)
    masks.close()
