"""`cortex run`: from a fresh install to a chat, with nothing configured.

The foreground process of one person: it starts neurond and cortexd in a folder of its
own, shows what they say and how far the first model is, tells how to chat, and stops
both on Ctrl-C. Under a service manager the two daemons are services instead.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cortexd.ctl.arguments import Parser, human
from cortexd.ctl.run import plan
from cortexd.ctl.run.console import Console
from cortexd.ctl.run.preflight import obstacle
from cortexd.ctl.run.readiness import Ready
from cortexd.ctl.run.session import Part, Session
from cortexd.ctl.screen import screen_for
from cortexd.ctl.units import parse_span, span
from ipc import paths

Facts = dict[str, Any]


def main(argv: Sequence[str]) -> int:
    """The entry point; returns the exit code."""
    args = _parser().parse_args(argv)
    console = Console(sys.stdout, screen_for(sys.stdout, os.environ))
    flags = _flags(args)
    configs = {
        "gateway": paths.config_file("cortex.toml", args.config),
        "node": paths.config_file("neuron.toml", args.node_config),
    }
    if problem := obstacle(flags, configs):
        console.say(problem)
        return 1
    session = _session(flags, configs, console, args.start_timeout)
    return asyncio.run(session.run())


def _parser() -> Parser:
    parser = Parser(
        prog="cortex run",
        description="Start a node and a gateway here and wait until they can chat.\n\n"
        "  cortex run\n  cortex run --port 8080",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="listen here; 0.0.0.0: for everyone")
    add("--port", type=int, help="the API; default 31313")
    add("--metrics-port", type=int, help="default 31314")
    add("--node-port", type=int, help="default 13131")
    add("--node-metrics-port", type=int, help="default 13132")
    add("--run-dir", type=Path, help="everything that is written; default ./.run")
    add("--config", type=Path, metavar="FILE", help="a cortex.toml")
    add("--node-config", type=Path, metavar="FILE", help="a neuron.toml")
    add(
        "--start-timeout",
        type=human(parse_span, "a time such as 5m"),
        default=900.0,
        metavar="TIME",
        help="give up when not ready by then; default 15m",
    )
    parser.learn(parser)
    return parser


def _flags(args: argparse.Namespace) -> plan.Flags:
    chosen = args.run_dir or Path(os.environ.get("CORTEX_RUN_DIR") or ".run")
    return plan.Flags(
        run_dir=chosen.absolute(),
        host=args.host,
        port=args.port,
        metrics_port=args.metrics_port,
        node_port=args.node_port,
        node_metrics_port=args.node_metrics_port,
    )


def _session(
    flags: plan.Flags,
    configs: dict[str, Path | None],
    console: Console,
    start_timeout_s: float,
) -> Session:
    """The composition root."""
    folder = flags.run_dir / "etc"
    node_file = configs["node"] or folder / "neuron.toml"
    gateway_file = configs["gateway"] or folder / "cortex.toml"

    def write_node(_facts: Facts) -> None:
        if configs["node"] is None:
            _write(node_file, plan.node_text(flags))

    def write_gateway(node_facts: Facts) -> None:
        if configs["gateway"] is None:
            address = _listening(node_facts) or str(plan.addresses(flags)["node"])
            text = plan.gateway_text(flags, plan.reachable(address))
            _write(gateway_file, text)

    return Session(
        _part(flags, "neurond", node_file, write_node),
        _part(flags, "cortexd", gateway_file, write_gateway),
        plan.environment(
            flags,
            os.environ,
            own_gateway=configs["gateway"] is None,
            own_node=configs["node"] is None,
        ),
        console,
        announce=functools.partial(_announce, console, flags),
        start_timeout_s=start_timeout_s,
    )


def _part(
    flags: plan.Flags, daemon: str, file: Path, prepare: Callable[[Facts], None]
) -> Part:
    argv = [sys.executable, "-m", daemon, "--config", str(file)]
    return Part(daemon, argv, plan.control_socket(flags, daemon), prepare)


def _listening(facts: Facts) -> str:
    """Where the daemon's HTTP really listens; matters when port 0 was asked for."""
    return str((facts.get("listen") or {}).get("http", ""))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(text)


def _announce(
    console: Console, flags: plan.Flags, ready: Ready, facts: Facts, took_s: float
) -> None:
    """Address, how to chat, how to add a model, how to watch: each works as pasted."""
    address = plan.reachable(_listening(facts) or str(plan.addresses(flags)["port"]))
    for failure in ready.failures:
        console.say(failure)
    console.say(f"ready after {span(took_s)} at http://{address}")
    control = _control_command(flags)
    if ready.model:
        console.plain(f"\n  {plan.curl_line(address, ready.model)}\n")
    else:
        console.plain(f"\n  no model is loaded: {control} load ID --source FOLDER\n")
    console.say(f"watch it with `{control} status`; Ctrl-C stops everything")


def _control_command(flags: plan.Flags) -> str:
    """cortexctl as the person here can type it."""
    beside = Path(sys.argv[0]).parent / "cortexctl"
    command = str(beside) if beside.exists() else "cortexctl"
    if flags.run_dir != Path(".run").absolute():
        return f"CORTEX_RUN_DIR={shlex.quote(str(flags.run_dir))} {command}"
    return command
