"""A GGUF file on a real node: converted once, by a process of its own, then served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipc.errors import ServiceError
from tests.harness import Node
from tests.neurond.device import tinygguf

GGUF = "little"
pytestmark = pytest.mark.timeout(120)


def _node(folder: Path, file: Path) -> Node:
    config: dict[str, dict[str, Any]] = {
        "devices": {"kind": "cpu"},
        "models": {"default": []},
    }
    return Node(folder, models=[{"id": GGUF, "source": str(file)}], config=config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("node")


@pytest.fixture(scope="module")
def node(folder: Path) -> Iterator[Node]:
    with _node(folder, tinygguf.build(folder / "little.gguf")) as node:
        yield node


def test_it_is_converted_loaded_and_never_converted_again(node: Node) -> None:
    first = node.control("load", model_id=GGUF)
    assert first["status"] == "loaded"
    made = Path(first["model"]["folder"])
    assert (made / "config.json").exists()
    stamp = (made / "config.json").stat().st_mtime_ns

    node.control("unload", model_id=GGUF)
    again = node.control("load", model_id=GGUF)

    assert again["model"]["folder"] == str(made)
    assert (made / "config.json").stat().st_mtime_ns == stamp


def test_a_file_that_is_no_gguf_fails_with_its_reason(node: Node, folder: Path) -> None:
    bad = folder / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(ServiceError) as refused:
        node.control("load", model_id="bad", source=str(bad))
    assert refused.value.code == "load_failed"
    assert str(folder) not in refused.value.message
    assert node.model("bad")["status"] == "failed"
    assert node.control("load", model_id=GGUF)["status"] == "loaded"


def test_a_conversion_that_is_killed_is_a_failed_load_and_leaves_no_half_folder(
    node: Node, folder: Path
) -> None:
    other = tinygguf.build(folder / "other.gguf")
    with other.open("ab") as file:
        file.write(bytes(32))  # another file, another folder
    node.control("load", model_id="other", source=str(other), wait=False)
    node.wait(lambda: bool(node.kill("convert")), "no conversion starts", 20)
    node.wait(lambda: node.model("other")["status"] == "failed", "it doesn't fail")
    assert "ended without a result" in node.model("other")["reason"]
    assert node.control("load", model_id="other")["status"] == "loaded"
