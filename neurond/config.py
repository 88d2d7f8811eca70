"""What a node is told: neuron.toml and NEURON_… variables as frozen records.

Read once by the supervisor; its children get what they need as a settings fd. Every
field's default and meaning stand here and nowhere else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ipc import listeners, settings
from neurond.modelid import EMBEDDED_ID, is_model_id
from neurond.serving.hygiene import Rule

FILE = "neuron.toml"
PREFIX = "NEURON_"


def _bounded(default: Any, least: Any, most: Any, doc: str) -> Any:
    return field(default=default, metadata={"min": least, "max": most, "doc": doc})


@dataclass(frozen=True, slots=True)
class Node:
    """`[node]`"""

    name: str = field(default="", metadata={"doc": "default: the host's name"})
    listen: str = "0.0.0.0:13131"
    metrics_listen: str = "0.0.0.0:13132"
    workers: int = _bounded(2, 1, 256, "HTTP worker processes")
    token: str = field(default="", metadata={"secret": True, "doc": "bearer token"})

    def __post_init__(self) -> None:
        for address in (self.listen, self.metrics_listen):
            listeners.parse(address)
        if not (self.token.isascii() and self.token.isprintable()):
            raise ValueError("token must be printable ASCII")


@dataclass(frozen=True, slots=True)
class Devices:
    """`[devices]`"""

    kind: Literal["auto", "cpu", "cuda", "fake"] = "auto"
    count: int = _bounded(1, 1, 64, "device processes, where kind is cpu or fake")
    spawn: Literal["zygote", "exec"] = "zygote"
    threads: int = _bounded(0, 0, 1024, "of one device; 0: cores divided by count")
    memory_bytes: int = _bounded(0, 0, 1 << 50, "of one cpu device; 0: half the host")


@dataclass(frozen=True, slots=True)
class Limits:
    """`[limits]`"""

    body_bytes: int = _bounded(32 << 20, 1024, 1 << 30, "largest request body")
    max_queue: int = _bounded(64, 1, 100_000, "requests that may wait")
    header_deadline_s: float = _bounded(10.0, 0.1, 600.0, "for a request's header")
    drain_s: float = _bounded(30.0, 0.0, 3600.0, "for open answers at a stop")
    decode_deadline_s: float = _bounded(30.0, 0.1, 3600.0, "for one step")
    prefill_deadline_s: float = _bounded(120.0, 0.1, 3600.0, "for one chunk of prompt")
    load_deadline_s: float = _bounded(900.0, 0.1, 86400.0, "for one model")
    boot_deadline_s: float = _bounded(120.0, 0.1, 3600.0, "for a device to come up")
    queue_deadline_s: float = _bounded(60.0, 0.1, 3600.0, "for a request that waits")
    resume_deadline_s: float = _bounded(
        120.0, 0.1, 3600.0, "for a device to come back, from its death"
    )
    quarantine_s: float = _bounded(
        3600.0, 0.0, 30 * 86400.0, "for which a request that killed a device is refused"
    )


@dataclass(frozen=True, slots=True)
class Engine:
    """`[engine]`"""

    numerics: Literal["fast", "invariant"] = "fast"
    max_running: int = _bounded(16, 1, 1024, "sequences decoded together")
    prefill_chunk: int = _bounded(512, 1, 1 << 20, "prompt tokens per step")
    kv_bytes: int = _bounded(0, 0, 1 << 50, "of one device; 0: from what weights leave")
    page_tokens: int = _bounded(0, 0, 4096, "of one KV page; 0: the device's choice")
    prefix_cache: bool = field(default=True, metadata={"doc": "reuse computed prompts"})
    first_token_target_s: float = _bounded(
        120.0, 0.0, 86400.0, "no prompt is taken that would need longer; 0: any"
    )
    resume: bool = field(
        default=True, metadata={"doc": "requests go on when their device died"}
    )


@dataclass(frozen=True, slots=True)
class Faults:
    """`[faults]`"""

    injection: bool = field(
        default=False, metadata={"doc": "operators may simulate faults"}
    )
    probe_every_s: float = _bounded(
        30.0, 0.0, 86400.0, "a known computation on an idle device; 0: none"
    )


@dataclass(frozen=True, slots=True)
class Models:
    """`[models]`"""

    default: tuple[str, ...] = (EMBEDDED_ID,)
    folders: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Model:
    """`[[model]]`: a model that the node knows, with settings of its own."""

    id: str
    source: str
    dtype: str = "auto"
    quant: str = "auto"
    context: int = _bounded(0, 0, 1 << 31, "window to serve; 0: the model's own")
    pinned: bool = False
    priority: int = _bounded(100, 0, 1_000_000, "higher wins")
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not is_model_id(self.id):
            raise ValueError(f"{self.id!r} can't be the id of a model")
        if not self.source:
            raise ValueError("source must say where the model is")

    def resolved(self, folder: Path) -> Model:
        """`folder` is what a relative source is relative to (S42)."""
        if self.source == "fake" or self.source.startswith(("/", "embedded:")):
            return self
        return replace(self, source=str(folder / self.source))


@dataclass(frozen=True, slots=True)
class Log:
    """`[log]`"""

    format: Literal["auto", "text", "json"] = "auto"


@dataclass(frozen=True, slots=True)
class Paths:
    """`[paths]`; none = where `ipc.paths` puts it."""

    state: Path | None = None
    cache: Path | None = None
    runtime: Path | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """neuron.toml"""

    node: Node = Node()
    devices: Devices = Devices()
    limits: Limits = Limits()
    engine: Engine = Engine()
    faults: Faults = Faults()
    models: Models = Models()
    model: tuple[Model, ...] = ()
    hygiene: tuple[Rule, ...] = ()
    log: Log = Log()
    paths: Paths = Paths()

    def __post_init__(self) -> None:
        ids = [model.id for model in self.model]
        for kind, names in (
            ("model", ids),
            ("hygiene", [r.name for r in self.hygiene]),
        ):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise ValueError(f"{kind} {twice[0]!r} is there twice")


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Raises settings.ConfigError."""
    config = settings.load(Config, path, env_prefix=PREFIX, environ=environ)
    if path is None:
        return config
    folder = path.absolute().parent
    return replace(config, model=tuple(m.resolved(folder) for m in config.model))
