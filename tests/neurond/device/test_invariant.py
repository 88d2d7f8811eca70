"""The same bits alone, in company, in chunks, from a prefix, in another process."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipc.errors import ServiceError
from ipc.messages import Sampling
from neurond.device.computing import Computing
from neurond.device.invariant import make_invariant
from neurond.device.numerics import NUMERICS, is_invariant
from neurond.device.settings import DeviceSettings
from tests.neurond.device import embedded, families
from tests.neurond.device.bits import Bits, spying
from tests.neurond.device.host import WORKER, Host
from tests.neurond.device.prompts import make_prompts
from tests.neurond.device.rig import make_submit
from tests.neurond.device.served import Served

PROMPTS = [tuple(ids) for ids in make_prompts()]
FAMILIES = ("llama", "qwen3", "gemma3", "qwen3_5", "qwen3_moe")
CASES = [(name, dtype) for name in FAMILIES for dtype in ("float32", "bfloat16")]
FEWER = {
    "qwen3_5": {
        "num_hidden_layers": 2,
        "layer_types": ["linear_attention", "full_attention"],
    }
}
"""Layers, of what is computed an id at a time."""

NUM_TOKENS = 6
ROOT = Path(__file__).parents[3]


Hosts = Callable[..., Host]


def prompts_of(name: str) -> list[tuple[int, ...]]:
    """Fewer and shorter for a model that computes its prompts an id at a time."""
    return [ids[:14] for ids in PROMPTS[:3]] if name == "qwen3_5" else PROMPTS


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("families")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            families.build(name, **FEWER.get(name, {})).save_pretrained(root / name)
        return root / name

    return folder


@pytest.fixture(scope="module")
def hosts(folders: Callable[[str], Path]) -> Hosts:
    """Loaded once per family, dtype and settings."""

    @functools.cache
    def host(name: str, dtype: str = "float32", **more: Any) -> Host:
        told = {"numerics": "invariant", "page_tokens": 16, "prefill_chunk": 16}
        made = Host(**{**told, **more})
        made.load(folders(name), dtype=dtype)
        return made

    return host


def submit(host: Host, number: int, ids: tuple[int, ...], **more: Any) -> None:
    more = {"max_tokens": NUM_TOKENS, **more}
    host.engine.submit(WORKER, make_submit(number, ids, **more))


def alone(host: Host, name: str, **more: Any) -> Bits:
    """Of every prompt by itself, from nothing."""
    with spying(host) as spy:
        for number, ids in enumerate(prompts_of(name)):
            submit(host, number, ids, cache_salt=f"alone {number}", **more)
            host.drain()
    return spy.bits


def together(host: Host, name: str, **more: Any) -> Bits:
    """A prompt joins at every second step; they leave as they end."""
    with spying(host) as spy:
        for number, ids in enumerate(prompts_of(name)):
            submit(host, number, ids, **{"max_tokens": NUM_TOKENS + number % 3, **more})
            host.engine.step()
            host.engine.step()
        host.drain()
    assert not spy.differing
    return spy.bits


def agree(found: Bits, wanted: Bits) -> bool:
    """In all that both have, which is no little."""
    shared = found.keys() & wanted.keys()
    assert len(shared) > len(wanted) // 2
    return all(found[key] == wanted[key] for key in shared)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_bits_are_those_of_a_request_alone(hosts: Hosts, name: str, dtype: str) -> None:
    host = hosts(name, dtype)
    info = host.engine.models["m"].info
    assert info["numerics"] == "invariant"
    assert info["invariant_cost"].keys() == {"decode", "prefill"}
    assert "numerics are invariant" in host.written.getvalue()
    assert agree(together(host, name), alone(host, name))


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3_5"])
def test_a_turn_that_begins_from_what_is_kept_has_the_same_bits(
    hosts: Hosts, name: str
) -> None:
    host = hosts(name)
    first = prompts_of(name)[0][:13]
    [answer] = host.run(first, max_tokens=8, cache_salt="turns")
    turn = (*first, *answer, 9, 8, 7)  # goes on in the middle of the second page
    found = []
    for salt in ("turns", "own"):
        before = host.page.read().counters["cached_tokens_total"]
        with spying(host) as spy:
            submit(host, 0, turn, cache_salt=salt)
            host.drain()
        found.append(spy.bits)
        reused = host.page.read().counters["cached_tokens_total"] - before
        assert reused == (len(first) + len(answer) - 1 if salt == "turns" else 0)
    assert found[0] == found[1]


def test_fast_numerics_give_other_bits_in_company(hosts: Hosts) -> None:
    host = hosts("llama", numerics="fast")
    assert "invariant_cost" not in host.engine.models["m"].info
    assert not agree(together(host, "llama"), alone(host, "llama"))


@pytest.mark.parametrize(
    ("name", "chunk"),
    [("llama", 1), ("llama", 7), ("llama", 64), ("llama", 512), ("gemma3", 7)],
)
def test_no_border_of_a_chunk_shows(hosts: Hosts, name: str, chunk: int) -> None:
    scored = {"sampling": Sampling(temperature=0.0, prompt_logprobs=0)}
    wanted = alone(hosts(name), name, **scored)
    assert agree(together(hosts(name, prefill_chunk=chunk), name, **scored), wanted)


@pytest.mark.parametrize("name", ["llama", "qwen3_5"])
def test_a_sequence_that_gave_way_goes_on_with_the_same_bits(
    hosts: Hosts, name: str
) -> None:
    more = {"max_tokens": 30}
    wanted = alone(hosts(name), name, **more)
    spec = hosts(name).engine.models["m"].cache
    # two begin, and one page is missing before either ends
    few = {"llama": 6, "qwen3_5": 5}[name]
    host = hosts(name, kv_bytes=few * spec.page_bytes + 2 * spec.state_bytes)
    with spying(host) as spy:
        for number, ids in enumerate(prompts_of(name)):
            submit(host, number, ids, **more)
        host.drain()
    assert host.page.read().counters["preempted_total"] > 0
    assert agree(spy.bits, wanted)


def test_another_process_computes_the_same_bits(
    hosts: Hosts, folders: Callable[[str], Path]
) -> None:
    folder = str(folders("llama"))
    command = [sys.executable, "-m", "tests.neurond.device.bits", folder]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        wanted = alone(hosts("llama", "bfloat16"), "llama")
        written, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    found = {tuple(key): bits for key, bits in json.loads(written)}
    assert found.keys() == wanted.keys()
    assert agree(found, wanted)


@pytest.fixture(scope="module")
def wanted(hosts: Hosts) -> Bits:
    return alone(hosts("llama", "bfloat16"), "llama", max_tokens=8)


PLANS = st.lists(
    st.tuples(
        st.integers(0, len(PROMPTS) - 1),  # which prompt
        st.integers(0, 4),  # steps before it comes
        st.integers(1, 8),  # tokens it emits
        st.booleans(),  # whether it may reuse what others had
    ),
    min_size=2,
    max_size=6,
)


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(plan=PLANS, chunk=st.sampled_from([5, 16, 33]))
def test_any_schedule_gives_the_same_bits(
    hosts: Hosts, wanted: Bits, plan: list[tuple[int, int, int, bool]], chunk: int
) -> None:
    host = hosts("llama", "bfloat16", prefill_chunk=chunk)
    with spying(host) as spy:
        for number, (which, wait, num_tokens, reuses) in enumerate(plan):
            for _ in range(wait):
                host.engine.step()
            more = {} if reuses else {"cache_salt": f"own {number}"}
            ids = PROMPTS[which]
            submit(host, number, ids, max_tokens=num_tokens, **more)
        host.drain()
    for (number, at), bits in spy.bits.items():
        assert bits == wanted[plan[number][0], at]


class Sociable(torch.nn.Module):
    """A row of it knows how the others are."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        given: torch.Tensor = self.inner(rows)
        return given + 1e-6 * rows.abs().mean()


def proven(served: Served, time_limit_s: float = 60) -> Computing:
    steps = make_invariant(served.model, served.computing, time_limit_s)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            made: Computing = done.value
            return made


def test_a_model_whose_rows_know_each_other_is_refused() -> None:
    module = families.build("llama")
    assert proven(Served(module, page_tokens=16))
    module = families.build("llama")
    layer = module.model.layers[1]
    layer.mlp.down_proj = Sociable(layer.mlp.down_proj)
    served = Served(module, page_tokens=16)
    with pytest.raises(ServiceError, match='in chunks of 7 ids .* = "fast"') as refused:
        proven(served)
    assert refused.value.code == "load_failed"
    assert "numerics" not in served.model.info


def test_a_self_test_that_takes_too_long_is_given_up() -> None:
    with pytest.raises(ServiceError, match="took longer than 0 s"):
        proven(Served(families.build("llama")), time_limit_s=0)


def test_other_architectures_are_computed_an_id_at_a_time() -> None:
    served = Served(families.build("deepseek_v3"))
    assert not served.paged
    assert type(proven(served)).__name__ == "SteppedModel"


def test_a_model_may_have_numerics_of_its_own() -> None:
    fast, invariant = (DeviceSettings(numerics=told) for told in NUMERICS)
    assert not is_invariant({}, fast)
    assert is_invariant({}, invariant)
    assert is_invariant({"numerics": "invariant"}, fast)
    assert not is_invariant({"numerics": "fast"}, invariant)
    with pytest.raises(ServiceError, match="'exact' is not one of fast, invariant"):
        is_invariant({"numerics": "exact"}, fast)


@pytest.mark.model
def test_the_embedded_models_layers_give_the_same_bits_in_company(
    tmp_path: Path,
) -> None:
    host = Host(numerics="invariant", prefill_chunk=16)
    host.load(embedded.shallow(tmp_path / "model"), quant="auto")
    assert host.engine.models["m"].info["quant"] == "q4_1"
    assert agree(together(host, "llama"), alone(host, "llama"))
