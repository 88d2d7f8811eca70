"""A node with one worker and one device, and a gateway before it, for a soak.

Little KV on purpose: prefixes are evicted and sequences preempted all the time, and
memory that is written for the first time is written early.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.drills.traffic import Profile
from tests.harness import ROOT, Config, Daemon, Node
from tests.httpclient import Http

_READY_S = 150.0
_NOTHING: Config = MappingProxyType({})
_TOKEN = "soak"  # with which the gateway says for whom it asks
_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
PROFILES = {
    "fake": Profile("tiny", "vectors", 120.0, 100, 48, obeys=False, alike=1.0),
    "tiny": Profile("tiny", "vectors", 20.0, 60, 48, obeys=True, alike=0.98),
    "embedded": Profile("tiny", "vectors", 2.5, 300, 40, obeys=True, alike=0.0),
}


@dataclass(frozen=True)
class Stack:
    node: Node
    gateway: Daemon
    profile: Profile

    @property
    def daemons(self) -> tuple[Daemon, Daemon]:
        return self.node, self.gateway

    @property
    def address(self) -> tuple[str, int]:
        """Of the gateway."""
        host, _, port = self.gateway.facts()["listen"]["http"].rpartition(":")
        return host, int(port)


@contextmanager
def start(
    kind: str, folder: Path, numerics: str = "fast", more: Config = _NOTHING
) -> Iterator[Stack]:
    """Stops both; AssertionError where one leaves something behind. `more` changes
    sections of the node's configuration."""
    node = _node(kind, folder / "node", numerics, more)
    gateway = Daemon(folder / "gateway", "cortexd", {})
    profile = PROFILES[kind]
    if numerics == "invariant":
        profile = replace(profile, alike=1.0)
    stack = Stack(node, gateway, profile)
    try:
        node.start()
        node.wait_ready(_READY_S)
        gateway.config = _before(node)
        gateway.start()
        gateway.wait(lambda: _serves(stack), "the gateway is not ready")
        yield stack
        gateway.terminate()
        node.stop()
    finally:
        gateway.sweep()
        node.sweep()


def _before(node: Node) -> dict[str, Any]:
    gateway = {
        "listen": "127.0.0.1:0",
        "metrics_listen": "127.0.0.1:0",
        "workers": 1,
        "poll_interval_s": 0.2,
        "node_timeout_s": 10.0,
    }
    return {
        "gateway": gateway,
        "neurons": [{"name": "here", "endpoint": node.http.url, "token": _TOKEN}],
    }


def _serves(stack: Stack) -> bool:
    host, port = stack.address
    listed = Http(f"{host}:{port}", "").get("/v1/models").json["data"]
    loaded = {entry["id"] for entry in listed if entry["loaded"]}
    return {stack.profile.model, stack.profile.vectors} <= loaded


def _node(kind: str, folder: Path, numerics: str, more: Config) -> Node:
    config: dict[str, Any] = {
        "node": {"token": _TOKEN},
        "limits": {"max_queue": 40, "drain_s": 5},
    }
    if kind == "fake":
        config |= _engine(8, numerics=numerics)
        return Node(folder, models=_fakes(), config=_merged(config, more))
    config |= {
        "devices": {"kind": "cpu", "count": 1, "threads": 1},
        "paths": {"cache": str(ROOT / ".cache" / "neurond")},  # converted before
    }
    if kind == "tiny":
        config |= _engine(1, numerics=numerics, prefill_chunk=64)
        return Node(folder, models=_tinies(folder), config=_merged(config, more))
    config |= _engine(96, numerics=numerics)
    return Node(folder, models=_embedded(), config=_merged(config, more))


def _merged(config: Mapping[str, Any], more: Config) -> dict[str, Any]:
    sections = config.keys() | more.keys()
    return {name: {**config.get(name, {}), **more.get(name, {})} for name in sections}


def _engine(kv_mib: int, **more: Any) -> dict[str, Any]:
    return {"engine": {"max_running": 16, "kv_bytes": kv_mib << 20, **more}}


def _fakes() -> list[dict[str, Any]]:
    page = {"page_tokens": 16, "page_bytes": 16 << 10, "pages": 512}
    return [
        {
            "id": "tiny",
            "source": "fake",
            "context": 1024,
            "options": {"step_ms": 1, "token_ms": 0.02, **page},
        },
        {"id": "vectors", "source": "fake", "options": {"kind": "embedding"}},
    ]


def _tinies(folder: Path) -> list[dict[str, Any]]:
    """Made in a moment, with one tokenizer."""
    from transformers import BertConfig, BertModel

    from tests.neurond.device import tiny, tinytokenizer

    writer, embedder = folder / "llama", folder / "bert"
    writer.mkdir(parents=True)
    tiny.build("llama", writer)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 512}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=tiny.VOCAB_SIZE, **sizes, **heads)
    BertModel(config, add_pooling_layer=False).save_pretrained(embedder)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": _TEMPLATE,
        "eos_token": "<end>",
    }
    for made in (writer, embedder):
        tinytokenizer.write(made)
        (made / "tokenizer_config.json").write_text(json.dumps(settings))
    return [
        {"id": "tiny", "source": str(writer)},
        {"id": "vectors", "source": str(embedder)},
    ]


_EMBEDDER = {"id": "vectors", "source": "embedded:minilm"}


def _embedded() -> list[dict[str, Any]]:
    return [{"id": "tiny", "source": "embedded:smollm2", "context": 2048}, _EMBEDDER]
