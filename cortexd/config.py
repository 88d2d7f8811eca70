"""What a gateway is told: cortex.toml and models.toml as frozen records.

Read once by the supervisor, handed to its children as a settings fd. The catalogue is
the file that `[gateway] models` names, or a models.toml beside cortex.toml.

Invariant: a catalogue that is named and missing is an error, never an empty one (S42).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cortexd.nodes import endpoint
from ipc import listeners, settings

FILE = "cortex.toml"
CATALOGUE_FILE = "models.toml"
PREFIX = "CORTEX_"


def _bounded(default: Any, least: Any, most: Any, doc: str) -> Any:
    return field(default=default, metadata={"min": least, "max": most, "doc": doc})


@dataclass(frozen=True, slots=True)
class Gateway:
    """`[gateway]`"""

    name: str = field(default="", metadata={"doc": "default: the host's name"})
    listen: str = "0.0.0.0:31313"
    metrics_listen: str = "0.0.0.0:31314"
    models: Path | None = field(
        default=None, metadata={"exists": "file", "doc": "the catalogue, models.toml"}
    )
    workers: int = _bounded(2, 1, 256, "HTTP worker processes")
    body_bytes: int = _bounded(32 << 20, 1024, 1 << 30, "largest request body")
    header_deadline_s: float = _bounded(10.0, 0.1, 600.0, "for a request's header")
    drain_s: float = _bounded(30.0, 0.0, 3600.0, "for open answers at a stop")
    poll_interval_s: float = _bounded(1.0, 0.02, 60.0, "between polls of a node")
    node_timeout_s: float = _bounded(2.0, 0.02, 60.0, "for one poll of a node")
    connect_timeout_s: float = _bounded(2.0, 0.05, 60.0, "to connect to a node")
    idle_timeout_s: float = _bounded(60.0, 0.1, 3600.0, "of silence of a node (S46)")
    stall_timeout_s: float = _bounded(60.0, 0.1, 3600.0, "of a client that won't read")

    def __post_init__(self) -> None:
        for address in (self.listen, self.metrics_listen):
            listeners.parse(address)


@dataclass(frozen=True, slots=True)
class Eviction:
    """`[eviction]`"""

    strategy: Literal["lru", "priority"] = "lru"
    defrag_after_cycles: int = _bounded(
        50, 0, 1_000_000, "loads and unloads before an idle device is recycled; 0 never"
    )


@dataclass(frozen=True, slots=True)
class Neuron:
    """`[[neurons]]`: a node of the fleet."""

    name: str
    endpoint: str
    token: str = field(default="", metadata={"secret": True})

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a node needs a name")
        if not (self.token.isascii() and self.token.isprintable()):
            raise ValueError("token must be printable ASCII")
        endpoint.parse(self.endpoint)


@dataclass(frozen=True, slots=True)
class Log:
    """`[log]`"""

    format: Literal["auto", "text", "json"] = "auto"


@dataclass(frozen=True, slots=True)
class Config:
    """cortex.toml"""

    gateway: Gateway = Gateway()
    eviction: Eviction = Eviction()
    neurons: tuple[Neuron, ...] = ()
    log: Log = Log()

    def __post_init__(self) -> None:
        _refuse_twice("node name", [neuron.name for neuron in self.neurons])
        places = [str(endpoint.parse(neuron.endpoint)) for neuron in self.neurons]
        _refuse_twice("endpoint", places)


@dataclass(frozen=True, slots=True)
class Profile:
    """`[[models]]` of models.toml: a model that clients may ask for."""

    id: str
    aliases: tuple[str, ...] = ()
    source: str = ""
    quant: str = "auto"
    dtype: str = "auto"
    context: int = _bounded(0, 0, 1 << 30, "window to serve; 0 = the model's own")
    memory_bytes: int = _bounded(0, 0, 1 << 50, "what it takes; 0 = by its files")
    pinned: bool = False
    pinned_on: tuple[str, ...] = ()
    priority: int = 100

    def __post_init__(self) -> None:
        if not self.id or "" in self.aliases:
            raise ValueError("a model's id and aliases must not be empty")


@dataclass(frozen=True, slots=True)
class Catalogue:
    """models.toml"""

    models: tuple[Profile, ...] = ()

    def __post_init__(self) -> None:
        aliases = [alias for model in self.models for alias in model.aliases]
        _refuse_twice("id or alias", [m.id for m in self.models] + aliases)


class Settings(NamedTuple):
    """Both files."""

    config: Config
    catalogue: Catalogue

    def dump(self) -> dict[str, Any]:
        """For a settings fd; `build` is the inverse."""
        return {
            "config": settings.dump(self.config),
            "catalogue": settings.dump(self.catalogue),
        }


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Raises settings.ConfigError."""
    config = settings.load(Config, path, env_prefix=PREFIX, environ=environ)
    catalogue = _catalogue_file(config, path)
    return Settings(
        config,
        settings.load(Catalogue, catalogue, env_prefix=PREFIX, environ={}),
    )


def build(plain: Mapping[str, Any]) -> Settings:
    return Settings(
        settings.build(Config, plain["config"]),
        settings.build(Catalogue, plain["catalogue"]),
    )


def _catalogue_file(config: Config, path: Path | None) -> Path | None:
    if config.gateway.models is not None or path is None:
        return config.gateway.models
    beside = path.parent / CATALOGUE_FILE
    return beside if beside.exists() else None


def _refuse_twice(what: str, names: Iterable[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{what} {twice[0]!r} is there twice")
