"""Kills of the device process of a real node under every kind of request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness import MODEL, Node
from tests.httpclient import Reply
from tests.neurond.frontend import checkpoints
from tests.neurond.frontend.disturbed import (
    CHAT,
    TEXTS,
    VECTORS,
    Ask,
    Killer,
    disturbed,
    undisturbed,
)

SLOW = "[[fake tokens=50 step_ms=4]]"
MODELS: list[dict[str, Any]] = [
    {"id": MODEL, "source": "fake"},
    {
        "id": "vectors",
        "source": "fake",
        "options": {"kind": "embedding", "prefill_ms": 30},
    },
]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with Node(tmp_path_factory.mktemp("resume"), models=MODELS) as running:
        yield running


def chat(text: str = SLOW, **fields: Any) -> Ask:
    messages = [{"role": "user", "content": text}]
    return Ask(CHAT, {"model": MODEL, "messages": messages, **fields})


def texts(prompt: Any = SLOW, **fields: Any) -> Ask:
    given = {"max_tokens": 200, "prompt": prompt, **fields}
    return Ask(TEXTS, {"model": MODEL, **given})


USAGE: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
ASKS = [
    chat(**USAGE),
    chat(),
    chat(n=2, logprobs=True, top_logprobs=2),
    chat(n=2, logprobs=True, **USAGE),
    chat(stop=["w12"], **USAGE),
    texts([SLOW, f"{SLOW} other"], n=2, **USAGE),
    texts(echo=True, logprobs=1),
    Ask(VECTORS, {"model": "vectors", "input": [f"text {n}" for n in range(40)]}),
]


def test_s01_s47_every_request_answers_as_if_no_device_had_died(node: Node) -> None:
    wanted = undisturbed(node, ASKS)
    killer = Killer(node, "fake-0", seed=1, num_kills=4)
    assert disturbed(node, ASKS, killer, most=40) == wanted
    assert killer.kills >= 2
    assert "requests go on" in node.log.read_text()
    node.wait_ready()


def test_s16_of_a_batch_only_the_request_that_kills_is_refused(node: Node) -> None:
    innocent = chat(**USAGE)
    wanted = innocent.run(node)
    poison = "[[fake tokens=50 step_ms=4 fault=exit111 at=20]]"
    replies: list[Reply] = []
    asking = threading.Thread(target=lambda: replies.append(node.http.chat(poison)))
    asking.start()
    quiet = Killer(node, "fake-0", seed=1, num_kills=0)
    assert disturbed(node, [innocent] * 7, quiet, most=1) == [wanted] * 7
    asking.join()
    for reply in (*replies, node.http.chat(poison, temperature=0.5)):
        assert reply.status == 422
        assert reply.error["code"] == "request_quarantined"
    node.wait_ready()
    assert innocent.run(node) == wanted


# ---- a checkpoint whose bits don't depend on what happened


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("checkpoint")
    config = {
        "devices": {"kind": "cpu", "count": 1, "threads": 1},
        "engine": {
            "numerics": "invariant",
            "prefill_chunk": 16,
            "kv_bytes": 8 << 20,
        },
    }
    models = [{"id": MODEL, "source": str(checkpoints.write(folder / "llama"))}]
    with Node(folder, models=models, config=config) as running:
        yield running


PROMPT = [7 * n % 250 for n in range(40)]


def ids(**fields: Any) -> Ask:
    given = {"prompt": PROMPT, "max_tokens": 40, "seed": 5, "ignore_eos": True}
    return Ask(TEXTS, {"model": MODEL, **given, **fields})


EXACT = [
    ids(temperature=0, **USAGE),
    ids(temperature=0),
    ids(temperature=1, n=2, logprobs=2, **USAGE),
    ids(temperature=1, n=2, logprobs=2),
    ids(temperature=0, max_tokens=20, echo=True, logprobs=1, prompt_logprobs=1),
    ids(temperature=0, max_tokens=0, echo=True, logprobs=0, prompt=PROMPT * 4),
    ids(temperature=1, guided_regex="([a-f][0-9]){20}", ignore_eos=False, **USAGE),
    ids(temperature=1, frequency_penalty=1.0, min_tokens=30, **USAGE),
]


def test_s01_s47_a_checkpoint_answers_bit_for_bit_as_if_nothing_had_died(
    checkpoint: Node,
) -> None:
    wanted = undisturbed(checkpoint, EXACT)
    killer = Killer(checkpoint, "cpu-0", seed=3, num_kills=3)
    assert disturbed(checkpoint, EXACT, killer, most=40) == wanted
    assert killer.kills >= 2
    assert "requests go on" in checkpoint.log.read_text()
    checkpoint.wait_ready()
