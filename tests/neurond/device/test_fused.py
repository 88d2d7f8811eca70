"""Fused layers compute what transformers' own do; what they don't know stays."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from neurond.device import linear
from neurond.device.fused import FusedLayer, can_fuse, fuse
from neurond.device.linear import LinearPlan, PackedLinear

_SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_hidden_layers": 2,
    "max_position_embeddings": 256,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
_SLIDING = {
    "use_sliding_window": True,
    "sliding_window": 8,
    "max_window_layers": 1,
}
FAMILIES: dict[str, Any] = {
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig, {"tie_word_embeddings": True}),
    "llama_biased": (
        hf.LlamaForCausalLM,
        hf.LlamaConfig,
        {"attention_bias": True, "mlp_bias": True},
    ),
    "mistral": (hf.MistralForCausalLM, hf.MistralConfig, {"sliding_window": 8}),
    "qwen2": (hf.Qwen2ForCausalLM, hf.Qwen2Config, {}),
    "qwen2_sliding": (hf.Qwen2ForCausalLM, hf.Qwen2Config, _SLIDING),
    "qwen3": (hf.Qwen3ForCausalLM, hf.Qwen3Config, {}),
    "qwen3_sliding": (hf.Qwen3ForCausalLM, hf.Qwen3Config, _SLIDING),
}


def make(family: str) -> Any:
    torch.manual_seed(11)
    model_class, config_class, more = FAMILIES[family]
    model = model_class(config_class(**{**_SIZES, **more})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            elif name.endswith("bias"):
                parameter.copy_(torch.randn_like(parameter))
            elif "embed" not in name:
                parameter.mul_(8)  # spread the logits, so that greedy tokens vary
    return model


def generated(model: Any, prompt: Tensor) -> list[list[int]]:
    with torch.inference_mode():
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=0,
        )
    tokens: list[list[int]] = output[:, prompt.shape[1] :].tolist()
    return tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fused_family_writes_the_same_tokens(family: str) -> None:
    model = make(family)
    fused = copy.deepcopy(model)
    assert fuse(fused) == 2
    prompt = torch.randint(0, 256, (2, 12))
    wanted = generated(model, prompt)
    assert generated(fused, prompt) == wanted
    assert len({token for row in wanted for token in row}) > 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (5, 1)])
def test_logits_are_equal_up_to_rounding(family: str, shape: tuple[int, int]) -> None:
    model = make(family)
    ids = torch.randint(0, 256, shape)
    positions = torch.arange(shape[1]).expand(shape) + torch.arange(shape[0])[:, None]
    with torch.inference_mode():
        wanted = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        fuse(model)
        found = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    assert torch.allclose(found, wanted, atol=2e-4 * float(wanted.abs().max()))


def maskless(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **more: Any
) -> tuple[Tensor, None]:
    """Causal attention that needs no mask from transformers."""
    assert mask is None
    length, total = query.shape[2], key.shape[2]
    seen = torch.ones(length, total).tril(total - length).bool()
    if window := more["sliding_window"]:
        seen &= torch.ones(length, total).triu(total - length - window + 1).bool()
    found = nn.functional.scaled_dot_product_attention(
        query, key, value, seen, scale=more["scaling"], enable_gqa=True
    )
    return found.transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register("maskless", maskless)


def stepped(model: Any, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens by calls as the runner makes them."""
    cache, ids, tokens = hf.DynamicCache(), prompt, []
    for _ in range(count):
        past = cache.get_seq_length()
        with torch.inference_mode():
            logits = model(
                input_ids=torch.tensor([ids]),
                position_ids=torch.arange(past, past + len(ids))[None],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
        ids = [int(logits[0, -1].argmax())]
        tokens += ids
    return tokens


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3_sliding"])
def test_the_lean_way_through_a_fused_model_writes_the_same_tokens(family: str) -> None:
    model = make(family)
    prompt = torch.randint(0, 256, (1, 9))
    wanted = generated(model, prompt)[0]
    fuse(model)
    model.set_attn_implementation("maskless")
    model.model.forward._whole = None  # isn't called
    assert stepped(model, prompt[0].tolist(), len(wanted)) == wanted


@pytest.mark.parametrize("ask", ["attention_mask", "output_hidden_states", "positions"])
def test_calls_that_need_more_go_the_whole_way(ask: str) -> None:
    model = make("llama")
    ids = torch.randint(0, 256, (2, 5))
    more: dict[str, Any] = {"use_cache": False}
    if ask == "attention_mask":
        more[ask] = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    if ask == "output_hidden_states":
        more[ask] = True
    with torch.inference_mode():
        wanted = model(input_ids=ids, **more)
        fuse(model)
        found = model(input_ids=ids, **more)
    assert torch.allclose(found.logits[:, -1], wanted.logits[:, -1], atol=1e-2)


def test_embeddings_in_place_of_ids_go_the_whole_way() -> None:
    model = make("llama")
    fuse(model)
    model.set_attn_implementation("maskless")
    ids = torch.randint(0, 256, (1, 5))
    positions = torch.arange(5)[None]
    with torch.inference_mode():
        wanted = model(
            input_ids=ids, position_ids=positions, past_key_values=hf.DynamicCache()
        ).logits
        found = model(
            inputs_embeds=model.get_input_embeddings()(ids),
            position_ids=positions,
            past_key_values=hf.DynamicCache(),
        ).logits
    assert torch.allclose(found, wanted, atol=1e-4)


def test_packed_layers_fuse_to_what_they_computed() -> None:
    apart = _packed(make("llama_biased").to(torch.bfloat16))
    ids = torch.randint(0, 256, (1, 9))
    for length in (1, 9):
        with torch.inference_mode():
            wanted = apart(input_ids=ids[:, :length], use_cache=False).logits
            joined = copy.deepcopy(make("llama_biased").to(torch.bfloat16))
            assert fuse(_packed(joined)) == 2
            found = joined(input_ids=ids[:, :length], use_cache=False).logits
        error = (found - wanted).abs().max() / wanted.abs().max()
        assert error < 0.06


def _packed(model: Any, kind: str = "int4") -> Any:
    plan = LinearPlan(kind, group_size=32)
    for owner in list(model.model.layers.modules()):
        for name, part in list(owner.named_children()):
            if isinstance(part, nn.Linear):
                packed = linear.pack(part.weight.detach(), part.bias, plan)
                setattr(owner, name, packed)
    return model


def test_parts_of_different_kinds_stay_apart_inside_a_fused_layer() -> None:
    plain = make("llama").to(torch.bfloat16)
    model = _packed(copy.deepcopy(plain), "none")
    ids = torch.randint(0, 256, (1, 5))
    with torch.inference_mode():
        wanted = model(input_ids=ids, use_cache=False).logits
        layers = zip(model.model.layers, plain.model.layers, strict=True)
        for layer, source in layers:
            weight = source.self_attn.v_proj.weight.detach()
            layer.self_attn.v_proj = linear.pack(weight, None, LinearPlan("int8"))
        assert fuse(model) == 2
        found = model(input_ids=ids, use_cache=False).logits
    assert (found - wanted).abs().max() / wanted.abs().max() < 0.06


@pytest.mark.parametrize("family", ["gemma2", "odd_activation", "child_class"])
def test_layers_of_any_other_class_are_left_alone(family: str) -> None:
    if family == "gemma2":
        config = hf.Gemma2Config(**{**_SIZES, "pad_token_id": 0})
        model: Any = hf.Gemma2ForCausalLM(config)
    else:
        model = make("llama")
    if family == "odd_activation":
        model.model.layers[1].mlp.act_fn = nn.GELU()
    if family == "child_class":
        layer = model.model.layers[0]
        layer.__class__ = type("Changed", (type(layer),), {})
    before = [id(part) for part in model.modules()]
    assert not can_fuse(model)
    assert fuse(model) == 0
    assert [id(part) for part in model.modules()] == before


def test_what_has_no_decoder_layers_is_refused() -> None:
    assert not can_fuse(nn.Linear(2, 2))
    assert fuse(nn.Linear(2, 2)) == 0


def test_a_fused_model_is_not_fused_twice() -> None:
    model = make("qwen3")
    assert fuse(model) == 2
    assert fuse(model) == 0


@pytest.mark.parametrize("kind", ["none", "int4"])
def test_weights_are_held_once(kind: str) -> None:
    model = make("qwen2").to(torch.bfloat16)
    if kind == "int4":
        _packed(model)
    before = _held_bytes(model)
    fuse(model)
    assert _held_bytes(model) == pytest.approx(before, rel=0.02)
    assert all(isinstance(layer, FusedLayer) for layer in model.model.layers)


def _held_bytes(model: Any) -> int:
    """Of every tensor that a module of the model refers to."""
    found: dict[int, int] = {}
    for part in model.modules():
        if isinstance(part, PackedLinear):
            found[id(part)] = part.held_bytes()
        for value in [*vars(part).values(), *part.parameters(recurse=False)]:
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())
