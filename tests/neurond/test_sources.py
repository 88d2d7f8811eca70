"""From a model's source to the files that hold it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipc.errors import ClientError, HostError
from neurond import converted, needs, sources
from neurond.config import Config, Model, Models
from neurond.converted import Marker
from neurond.modelid import (
    EMBEDDED_ID,
    EMBEDDED_SOURCE,
    EMBEDDER_ID,
    EMBEDDER_SOURCE,
)

EMBEDDED_IDS = {EMBEDDED_ID, EMBEDDER_ID}


def folder_at(path: Path, config: str = "{}") -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(config)
    return path


def test_the_embedded_models_are_always_known() -> None:
    known = sources.known_models(Config())
    assert known == {
        EMBEDDED_ID: Model(EMBEDDED_ID, EMBEDDED_SOURCE),
        EMBEDDER_ID: Model(EMBEDDER_ID, EMBEDDER_SOURCE),
    }


def test_folders_are_searched_for_models(tmp_path: Path) -> None:
    folder_at(tmp_path / "llama-3.1-8b")
    (tmp_path / "qwen2.5.gguf").write_bytes(b"GGUF")
    (tmp_path / "no-model").mkdir()
    (tmp_path / "readme.txt").write_text("")
    folders = Models(folders=(tmp_path, tmp_path / "missing"))
    known = sources.known_models(Config(models=folders))
    assert set(known) == EMBEDDED_IDS | {"llama-3.1-8b", "qwen2.5"}
    assert known["llama-3.1-8b"].source == str(tmp_path / "llama-3.1-8b")


def test_a_name_that_can_be_no_id_is_passed_over(tmp_path: Path) -> None:
    folder_at(tmp_path / "my model")
    (tmp_path / "ünder.gguf").write_bytes(b"GGUF")
    known = sources.known_models(Config(models=Models(folders=(tmp_path,))))
    assert set(known) == EMBEDDED_IDS


def test_a_listed_model_goes_before_one_that_was_found(tmp_path: Path) -> None:
    folder_at(tmp_path / "tiny")
    listed = Model("tiny", "fake", pinned=True)
    config = Config(models=Models(folders=(tmp_path,)), model=(listed,))
    assert sources.known_models(config)["tiny"] is listed


def test_the_embedded_source_is_the_installed_package(tmp_path: Path) -> None:
    found = sources.resolve(Model(EMBEDDED_ID, EMBEDDED_SOURCE), tmp_path)
    assert found.kind == "gguf"
    assert found.file is not None
    assert found.file.suffix == ".gguf"
    assert found.folder == tmp_path / "models" / found.digest


def test_the_embedded_embedder_is_a_folder_of_its_package(tmp_path: Path) -> None:
    found = sources.resolve(Model(EMBEDDER_ID, EMBEDDER_SOURCE), tmp_path)
    assert found.kind == "folder"
    sources.check(EMBEDDER_ID, found.folder)
    spec = Model(EMBEDDER_ID, EMBEDDER_SOURCE)
    found_bytes = needs.of(spec, found.folder, on_cpu=True).total_bytes
    assert 90_000_000 < found_bytes < 91_000_000


def test_a_folder_is_served_where_it_is(tmp_path: Path) -> None:
    folder = folder_at(tmp_path / "tiny")
    found = sources.resolve(Model("tiny", str(folder)), tmp_path / "cache")
    assert (found.kind, found.folder, found.file) == ("folder", folder, None)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match=r"has no config\.json") as caught:
        sources.resolve(Model("tiny", str(tmp_path)), tmp_path)
    assert caught.value.status == 422


def test_a_gguf_file_goes_into_the_cache_under_its_digest(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    found = sources.resolve(Model("tiny", str(file)), tmp_path / "cache")
    assert (found.kind, found.file) == ("gguf", file)
    assert found.folder == tmp_path / "cache" / "models" / found.digest
    assert not sources.is_converted(found)
    folder_at(found.folder)
    assert not sources.is_converted(found)  # by a conversion of an older format
    converted.write(found.folder, Marker(1, 2))
    assert sources.is_converted(found)
    converted.write(found.folder, Marker(1, 2, format=converted.FORMAT + 1))
    assert not sources.is_converted(found)


@pytest.mark.parametrize("source", ["/missing", "/etc/hostname", "a\0b", "gone.gguf"])
def test_what_is_neither_is_refused_without_a_path_for_the_client(
    source: str, tmp_path: Path
) -> None:
    with pytest.raises(ClientError, match="no model folder") as caught:
        sources.resolve(Model("tiny", source), tmp_path)
    assert caught.value.code == "model_source_invalid"
    assert source not in caught.value.message
    assert caught.value.chain == (f"source: {source}",)


def test_a_fake_has_a_folder_of_its_own_in_the_cache(tmp_path: Path) -> None:
    one = sources.resolve(Model("a/b", "fake"), tmp_path)
    other = sources.resolve(Model("a-b", "fake"), tmp_path)
    assert one.kind == other.kind == "fake"
    assert one.folder.parent == other.folder.parent == tmp_path / "fake"
    assert one.folder != other.folder


MIB = 1 << 20


def digest_of(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return sources.resolve(Model("tiny", str(path)), path.parent).digest


def test_the_digest_tells_files_apart_by_size_and_both_ends(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    content = bytes(3 * MIB)
    digests = {
        digest_of(file, content),
        digest_of(file, content + b"\0"),
        digest_of(file, b"\1" + content[1:]),
        digest_of(file, content[1:] + b"\1"),
        digest_of(file, b""),
    }
    assert len(digests) == 5
    assert digest_of(file, content) in digests


@pytest.mark.parametrize(
    "model", ["..", "a/../b", "../a", "/a", "a/", "a//b", "a\0b", "", " a", "a\n", "-a"]
)
def test_an_id_that_climbs_or_hides_is_refused(model: str) -> None:
    with pytest.raises(ClientError) as caught:
        sources.check_id(model)
    assert caught.value.param == "model_id"


@pytest.mark.parametrize("model", ["tiny", "org/tiny-1.5B", "a:b@c+d_e", "a" * 200])
def test_usual_ids_are_fine(model: str) -> None:
    sources.check_id(model)


def test_a_folder_without_a_tokenizer_is_refused_before_it_is_loaded(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.safetensors").write_bytes(bytes(10))
    with pytest.raises(HostError, match=r"has no tokenizer\.json"):
        sources.check("tiny", tmp_path)
