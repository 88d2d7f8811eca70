"""What `cortex run` is going to start: flags and found files → commands and texts.

Decides only; nothing is started or written here. A configuration that exists is used as
it is, and flags that were typed override it. Without one, a pair of files is written
into the run folder: a node and a gateway on loopback, the gateway facing that node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

GENERATED = (
    "# Written by `cortex run`, and again at each start. To keep changes, copy it to\n"
    "# ~/.config/cortex/ (or /etc/cortex/), where it is found and left alone.\n"
)
DEFAULT_PORTS = {"port": 31313, "metrics": 31314, "node": 13131, "node_metrics": 13132}


@dataclass(frozen=True, slots=True)
class Flags:
    """The command line; a port that is None was not typed."""

    run_dir: Path
    host: str = "127.0.0.1"
    port: int | None = None
    metrics_port: int | None = None
    node_port: int | None = None
    node_metrics_port: int | None = None


@dataclass(frozen=True, slots=True)
class Address:
    """A port that is about to be listened on, and the flag that moves it."""

    host: str
    port: int
    what: str
    flag: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def addresses(flags: Flags) -> dict[str, Address]:
    """The four listeners where no configuration says otherwise."""
    given = {
        "port": (flags.port, "gateway", "--port"),
        "metrics": (flags.metrics_port, "gateway's metrics", "--metrics-port"),
        "node": (flags.node_port, "node", "--node-port"),
        "node_metrics": (
            flags.node_metrics_port,
            "node's metrics",
            "--node-metrics-port",
        ),
    }
    return {
        name: Address(
            flags.host, DEFAULT_PORTS[name] if port is None else port, what, flag
        )
        for name, (port, what, flag) in given.items()
    }


def control_socket(flags: Flags, daemon: str) -> Path:
    """Where a daemon with our environment puts its control socket."""
    return flags.run_dir / daemon / "run" / "control.sock"


def node_text(flags: Flags) -> str:
    """A neuron.toml for this host alone."""
    place = addresses(flags)
    return (
        f"{GENERATED}\n[node]\n"
        f'listen = "{place["node"]}"\n'
        f'metrics_listen = "{place["node_metrics"]}"\n'
    )


def gateway_text(flags: Flags, node_address: str) -> str:
    """A cortex.toml that faces the node at `node_address`."""
    place = addresses(flags)
    return (
        f"{GENERATED}\n[gateway]\n"
        f'listen = "{place["port"]}"\n'
        f'metrics_listen = "{place["metrics"]}"\n'
        "\n[[neurons]]\n"
        'name = "local"\n'
        f'endpoint = "http://{node_address}"\n'
    )


def environment(
    flags: Flags,
    environ: Mapping[str, str],
    *,
    own_gateway: bool,
    own_node: bool,
) -> dict[str, str]:
    """The daemons' environment. `own_…`: the file is ours and has the ports already."""
    typed = {
        "CORTEX_GATEWAY__LISTEN": (flags.port, own_gateway),
        "CORTEX_GATEWAY__METRICS_LISTEN": (flags.metrics_port, own_gateway),
        "NEURON_NODE__LISTEN": (flags.node_port, own_node),
        "NEURON_NODE__METRICS_LISTEN": (flags.node_metrics_port, own_node),
    }
    overrides = {
        name: f"{flags.host}:{port}"
        for name, (port, own) in typed.items()
        if port is not None and not own
    }
    return {**environ, "CORTEX_RUN_DIR": str(flags.run_dir), **overrides}


def reachable(address: str) -> str:
    """An address to type on this host: a wildcard becomes loopback."""
    host, _, port = address.rpartition(":")
    loopback = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "": "127.0.0.1"}
    return f"{loopback.get(host, host)}:{port}"


def curl_line(address: str, model: str) -> str:
    """A chat request that works as pasted, with the same answer each time."""
    body = (
        f'{{"model": "{model}", "temperature": 0, "messages": [{{"role": "user",'
        ' "content": "What is the capital of France?"}]}'
    )
    return (
        f"curl http://{address}/v1/chat/completions"
        f" -H 'content-type: application/json' -d '{body}'"
    )
