"""Every family against transformers' own `generate`: token for token in float32."""

from __future__ import annotations

from typing import Any

import pytest

from ipc.errors import ServiceError
from tests.neurond.device import families
from tests.neurond.device.prompts import make_prompts
from tests.neurond.device.served import Served

NUM_TOKENS = 9
PROMPTS = make_prompts()
LATENT = "deepseek_v3"
ALIBI = ("Bloom", {"vocab_size": 512, "hidden_size": 64, "n_head": 4, "n_layer": 2})
CHUNKED = {"attention_chunk_size": 16, "num_local_experts": 2, "pad_token_id": 0}
SSM = {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1}


def answers(module: Any) -> list[list[int]]:
    return [families.reference(module, prompt, NUM_TOKENS) for prompt in PROMPTS]


@pytest.mark.parametrize("name", [n for n in families.FAMILIES if n != LATENT])
def test_s84_greedy_tokens_are_those_of_generate_in_any_company(name: str) -> None:
    module = families.build(name)
    wanted = answers(module)
    assert len({token for answer in wanted for token in answer}) > len(wanted)
    served = Served(module)
    assert served.paged
    assert served.generate(PROMPTS, NUM_TOKENS) == wanted
    assert served.generate(PROMPTS[::-1], NUM_TOKENS, chunk=7) == wanted[::-1]


@pytest.mark.parametrize("name", ["llama", "gemma3", "gemma2", "gpt_oss", "qwen3_5"])
def test_pages_that_do_not_follow_each_other_hold_the_same(name: str) -> None:
    module = families.build(name)
    wanted = answers(module)
    served = Served(module, page_tokens=4, scattered=True)
    assert served.paged
    assert served.generate(PROMPTS, NUM_TOKENS, chunk=11) == wanted


LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0 + 3 * i for i in range(8)],
    "original_max_position_embeddings": 32,
}
DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


def test_a_long_neighbour_does_not_turn_a_short_row() -> None:
    more = {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": 32}
    wanted = answers(families.build("phi3", **more))
    long = [index for index, prompt in enumerate(PROMPTS) if len(prompt) > 32]
    short = [i for i, prompt in enumerate(PROMPTS) if len(prompt) + NUM_TOKENS <= 32]
    served = Served(families.build("phi3", **more))
    assert served.paged
    found = served.generate(PROMPTS, NUM_TOKENS)
    assert found == [served.generate([p], NUM_TOKENS)[0] for p in PROMPTS]
    assert [found[i] for i in long] == [wanted[i] for i in long]
    brief = Served(families.build("phi3", **more), context=32)
    found = brief.generate([PROMPTS[i] for i in short], NUM_TOKENS)
    assert found == [wanted[i] for i in short]


def test_dynamic_frequencies_are_those_of_the_context() -> None:
    more = {"rope_parameters": DYNAMIC_ROPE, "max_position_embeddings": 32}
    served = Served(families.build("llama", **more), context=64)
    found = served.generate(PROMPTS, NUM_TOKENS)
    assert found == [served.generate([p], NUM_TOKENS)[0] for p in PROMPTS]
    rotary = served.model.body.module.model.rotary_emb
    before = rotary.inv_freq.clone()
    served.generate(PROMPTS[1:2], 1)
    assert before.equal(rotary.inv_freq)
    assert not before.equal(rotary.original_inv_freq)


@pytest.mark.parametrize("name", ["latent", "alibi", "chunked"])
def test_other_architectures_keep_a_cache_per_sequence(name: str) -> None:
    module = {
        "latent": lambda: families.build(LATENT),
        "alibi": lambda: families.make(ALIBI[0], **ALIBI[1]),
        "chunked": lambda: families.make("Llama4", **families.common(**CHUNKED)),
    }[name]()
    wanted = answers(module)
    served = Served(module)
    assert not served.paged
    assert not served.computing.spec.shares
    assert served.generate(PROMPTS, NUM_TOKENS, chunk=13) == wanted


def test_what_a_private_cache_takes_is_counted() -> None:
    spec = Served(families.make(ALIBI[0], **ALIBI[1])).computing.spec
    assert spec.page_bytes == spec.page_tokens * 2 * 64 * 2 * 4  # layers, dims, K and V


def test_a_model_that_ignores_its_cache_is_refused() -> None:
    with pytest.raises(ServiceError, match="with a cache"):
        Served(families.make("Mamba2", **families.common(**SSM)))


def test_an_encoder_with_a_decoder_is_refused() -> None:
    module = families.build("llama")
    module.config.is_encoder_decoder = True
    with pytest.raises(ServiceError, match="an encoder and a decoder"):
        Served(module)


def test_weights_that_give_nan_are_refused() -> None:
    module = families.build("llama")
    module.model.norm.weight.data[3] = float("nan")
    with pytest.raises(ServiceError, match="NaN"):
        Served(module)
