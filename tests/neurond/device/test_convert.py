from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ipc.child import close_fds_except, die_with_parent
from ipc.link import LinkClosed, create_link
from ipc.messages import Convert, Converted, LinkUp, LoadFailed, LoadProgress
from neurond import converted
from neurond.device import blocks, convert
from tests.neurond.device import embedded, tinygguf
from tests.neurond.device.host import Host
from tests.neurond.device.rig import chat_ids, wait_for


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinygguf.build(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


class Job:
    """A conversion process and the supervisor's end of its link."""

    def __init__(self) -> None:
        self.link, theirs = create_link()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            die_with_parent(parent)
            sys.stderr = os.fdopen(2, "w", buffering=1)
            close_fds_except((theirs.fileno(),))
            convert.main(theirs.fileno())
        theirs.close()
        self.reports: list[LinkUp] = []

    def run(self, source: Path, target: Path) -> LinkUp:
        """The last report."""
        self.link.send(Convert(str(source), str(target)))
        wait_for(self.ended, "the end of the conversion")
        return self.reports[-1]

    def ended(self) -> bool:
        try:
            while (received := self.link.receive()) is not None:
                self.reports.append(received[0])  # type: ignore[arg-type]
        except LinkClosed:
            return True
        return False

    def close(self) -> int:
        self.link.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def job() -> Iterator[Job]:
    made = Job()
    yield made
    if made.link.fileno() >= 0:
        made.close()


def test_a_gguf_file_becomes_a_model_folder(
    job: Job, gguf: Path, tmp_path: Path
) -> None:
    target = tmp_path / "converted"
    (tmp_path / "converted.tmp").mkdir()  # left by a job that was killed
    done = job.run(gguf, target)
    assert isinstance(done, Converted), done
    size_bytes = sum(path.stat().st_size for path in target.iterdir())
    assert done == Converted(str(target), size_bytes)
    assert job.close() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["converted"]
    progress = [r for r in job.reports if isinstance(r, LoadProgress)]
    assert {(r.model, r.stage) for r in progress} == {(str(target), "converting")}
    assert [r.done for r in progress] == sorted(r.done for r in progress)
    assert progress[-1].done == progress[-1].total == gguf.stat().st_size


def test_jobs_of_one_target_take_turns_and_the_second_finds_it_made(
    gguf: Path, tmp_path: Path
) -> None:
    target = tmp_path / "converted"
    jobs = [Job(), Job()]
    for each in jobs:
        each.link.send(Convert(str(gguf), str(target)))
    for each in jobs:
        wait_for(each.ended, "the end of the conversion")
    assert [type(each.reports[-1]) for each in jobs] == [Converted, Converted]
    assert [each.close() for each in jobs] == [0, 0]
    fewest, most = sorted(len(each.reports) for each in jobs)
    assert fewest <= 2 < most  # the second had nothing to build
    assert converted.read(target) is not None


def test_the_folder_loads_and_its_tokenizer_and_template_work(
    gguf: Path, tmp_path: Path
) -> None:
    from transformers import PreTrainedTokenizerFast

    target = tmp_path / "converted"
    convert.convert(gguf, target, lambda _fraction: None)
    loaded = Host().load(target)
    assert loaded.info["dtype"] == "bfloat16"
    assert loaded.context == 256
    tokenizer = PreTrainedTokenizerFast.from_pretrained(target)
    messages = [{"role": "user", "content": "Grüße 🙂"}]
    rendered = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True
    )
    assert tuple(rendered["input_ids"]) == chat_ids("Grüße 🙂")


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_the_blocks_of_every_linear_layer_are_kept(tmp_path: Path, kind: str) -> None:
    source = tinygguf.build(tmp_path / "tiny.gguf", kind)
    target = tmp_path / "converted"
    convert.convert(source, target, lambda _fraction: None, may_dequantise=False)
    marker = converted.read(target)
    assert marker is not None
    assert marker.types == {kind: 14}
    assert marker.has_blocks
    assert marker.stored_bytes == source.stat().st_size < marker.dense_bytes
    stored = load_file(target / converted.BLOCKS_FILE)
    dense = load_file(target / "model.safetensors")
    names = {name.rpartition(".")[0] for name in stored}
    assert len(names) == 14
    for name in names:
        kept = blocks.from_stored(name, stored)
        assert torch.equal(kept.dense(torch.bfloat16), dense[f"{name}.weight"])


def test_blocks_without_a_kernel_are_refused_before_anything_is_made(
    job: Job, tmp_path: Path
) -> None:
    source = tinygguf.build(tmp_path / "tiny.gguf", "Q8_0")
    failed = job.run(source, tmp_path / "converted")
    assert isinstance(failed, LoadFailed)
    assert str(failed.error[1]).startswith("no kernel here computes Q8_0 blocks: ")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_they_are_dequantised_where_somebody_says_so(tmp_path: Path) -> None:
    source = tinygguf.build(tmp_path / "tiny.gguf", "Q8_0")
    target = tmp_path / "converted"
    convert.convert(source, target, lambda _fraction: None, may_dequantise=True)
    assert not (target / converted.BLOCKS_FILE).exists()
    marker = converted.read(target)
    assert marker is not None
    assert not marker.has_blocks
    host = Host()
    assert "computes Q8_0 blocks" in host.refusal(target, quant="auto")
    assert host.load(target, quant="none").info["quant"] == "none"


def test_a_file_that_is_no_gguf_is_refused_and_leaves_nothing(
    job: Job, tmp_path: Path
) -> None:
    source = tmp_path / "bad.gguf"
    source.write_bytes(b"GGUF" + b"\xff" * 1000)
    failed = job.run(source, tmp_path / "converted")
    assert isinstance(failed, LoadFailed)
    assert failed.error[0] == "load_failed"
    assert job.close() == 111
    assert [path.name for path in tmp_path.iterdir()] == ["bad.gguf"]


def test_a_file_that_is_not_there_is_refused(job: Job, tmp_path: Path) -> None:
    failed = job.run(tmp_path / "none.gguf", tmp_path / "converted")
    assert isinstance(failed, LoadFailed)
    assert failed.error[1] == "the GGUF file does not exist"


def test_a_folder_of_before_is_replaced_by_a_conversion_that_succeeds_only(
    gguf: Path, tmp_path: Path
) -> None:
    target = tmp_path / "converted"
    target.mkdir()
    (target / "old").touch()
    convert.convert(gguf, target, lambda _fraction: None)
    assert not (target / "old").exists()
    before = sorted(path.name for path in target.iterdir())
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(gguf.read_bytes()[:5000])
    with pytest.raises(Exception):  # noqa: B017, PT011  transformers' own kinds
        convert.convert(broken, target, lambda _fraction: None)
    assert sorted(path.name for path in target.iterdir()) == before


def test_the_job_ends_with_its_link(job: Job) -> None:
    assert job.close() == 0


@pytest.mark.model
def test_the_embedded_model_has_its_template_and_all_its_weights() -> None:
    folder = embedded.folder()
    assert (folder / "chat_template.jinja").read_text().count("<|im_start|>") >= 2
    size_bytes = (folder / "model.safetensors").stat().st_size
    assert 269_000_000 < size_bytes < 270_000_000
