from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ipc.errors import DeviceFault
from ipc.journal import Journal
from ipc.messages import Load, LoadFailed
from ipc.status import Phase, StatusReader, StatusWriter, create_page
from neurond.device import fakemodel, golden
from neurond.device.backend import GoldenSteps, Resident
from neurond.device.fake import FakeBackend
from neurond.device.golden import digest, prompt
from neurond.device.loads import Loads
from neurond.device.verdict import DeviceDied
from tests.neurond.device import test_encoder, tiny
from tests.neurond.device.host import Host


def taken(host: Host, model: str = "m", *, alone: bool = True) -> tuple[str, int]:
    """A digest once more, and in how many slices."""
    resident = host.engine.models[model]
    computing = host.backend._models[model]
    steps = golden.of_tokens(resident, computing, alone=alone)
    count = 0
    try:
        while True:
            next(steps)
            count += 1
    except StopIteration as done:
        return str(done.value), count


def damage(folder: Path, part: str) -> None:
    """Some weights come out as others, finite ones."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    names = [name for name in weights if part in name]
    assert names
    for name in names:
        weights[name] = weights[name].flip(0)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("family", ["llama", "qwen3_5"])
def test_s19_every_load_of_a_model_gives_the_same(tmp_path: Path, family: str) -> None:
    folder = tiny.build(family, tmp_path)
    host = Host()
    first = host.load(folder).info["golden"]
    assert Host().load(folder).info["golden"] == first
    assert host.load(folder, model="beside").info["golden"] == first
    assert taken(host) == (first, 2)
    assert taken(host, alone=False)[0] == first


@pytest.mark.parametrize(
    "part", ["layers.1.mlp.down_proj", "layers.0.self_attn.v_proj"]
)
def test_s19_weights_that_came_out_otherwise_give_another(
    tmp_path: Path, part: str
) -> None:
    folder = tiny.build("llama", tmp_path)
    first = Host().load(folder).info["golden"]
    damage(folder, part)
    assert Host().load(folder).info["golden"] != first


def test_s19_a_pool_that_loses_what_is_written_gives_another(tmp_path: Path) -> None:
    host = Host()
    first = host.load(tiny.build("llama", tmp_path)).info["golden"]
    computing = host.backend._models["m"]
    compute = computing.compute

    def forgetful(works: object) -> object:
        found = compute(works)  # type: ignore[arg-type]
        computing.clear_pages(range(4))
        return found

    computing.compute = forgetful  # type: ignore[assignment,method-assign]
    assert taken(host)[0] != first


def test_s19_a_model_of_vectors_has_one_too(tmp_path: Path) -> None:
    folder = test_encoder.build(tmp_path, "bert")
    first = Host().load(folder).info["golden"]
    assert Host().load(folder).info["golden"] == first
    damage(folder, "layer.1.output.dense.weight")
    assert Host().load(folder).info["golden"] != first


def test_a_model_with_a_short_window_has_one(tmp_path: Path) -> None:
    assert Host().load(tiny.build("llama", tmp_path), context=4).info["golden"]


@given(st.integers(2, 300_000), st.integers(1, 16))
def test_the_prompt_is_of_ids_from_all_over_the_vocabulary(
    vocab_size: int, count: int
) -> None:
    ids = prompt(vocab_size, count)
    assert len(ids) == count
    assert all(0 <= token < vocab_size for token in ids)
    if vocab_size >= count:
        assert len(set(ids)) == count
        assert max(ids) - min(ids) >= vocab_size * (count - 1) // count - count


def test_a_digest_is_short_and_tells_ids_apart() -> None:
    assert len(digest([1, 2, 3])) == 16
    assert len({digest(ids) for ids in ([1, 2], [2, 1], [1, 2, 0], [1 << 40])}) == 4


class Failing(FakeBackend):
    """Loads, and then can't compute."""

    error: Exception | None = None

    def golden(self, model: Resident) -> GoldenSteps:
        self.probe(idle=True)
        yield from ()
        if self.error is not None:
            raise self.error
        return "fine"


class Bench:
    """Loads on a backend that does as told."""

    def __init__(self, folder: Path) -> None:
        page_fd = create_page()
        self.page = StatusReader(page_fd)
        self.backend = Failing()
        self.free_bytes = self.backend.memory().free_bytes
        self.loaded: list[Resident] = []
        self.loads = Loads(
            self.backend,
            StatusWriter(page_fd),
            generation=1,
            deadline_s=60,
            golden_s=7,
            on_loaded=self.loaded.append,
            journal=Journal("neurond"),
        )
        self.loads.add(Load("m", str(fakemodel.build(folder)), "auto", "none", 0, {}))


def test_it_has_a_deadline_of_its_own(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "fake")
    left_s: list[float] = []

    def look(*, idle: bool = False) -> None:
        view = bench.page.read()
        assert (view.phase, idle) == (Phase.LOAD, True)
        left_s.append(view.deadline_s - view.since_s)

    bench.backend.probe = look  # type: ignore[method-assign]
    bench.loads.advance()
    bench.loads.advance()
    assert left_s == [pytest.approx(7.0, abs=0.1)]


def test_a_model_that_fails_it_is_not_loaded(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "fake")
    bench.backend.error = ValueError("that was wrong")
    reports = [bench.loads.advance() for _ in range(2)]
    assert isinstance(reports[-1][0], LoadFailed)
    assert not bench.loaded
    assert bench.backend.memory().free_bytes == bench.free_bytes


def test_a_device_that_fails_it_is_gone(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "fake")
    bench.backend.error = DeviceFault("the context is gone")
    bench.loads.advance()
    with pytest.raises(DeviceDied):
        bench.loads.advance()


def test_without_a_gpu_the_recipes_for_one_have_names_that_can_be_ordered() -> None:
    from neurond.device.injection import KINDS
    from neurond.device.recipes import recipes

    assert set(recipes()) <= set(KINDS)
    assert not torch.cuda.is_initialized()
