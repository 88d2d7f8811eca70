"""The `neurond` command: read the configuration, open the sockets, supervise.

exit 0    stopped as asked            100  the configuration must change first
exit 70   cannot go on, start again   111  a socket is in use; try again later
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import socket
import sys
from pathlib import Path

import uvloop

import ipc
from ipc import listeners, paths
from ipc.bugs import report_to
from ipc.child import EXIT_PERMANENT, EXIT_TEMPORARY, set_title
from ipc.eventlog import EventLog
from ipc.journal import Journal
from ipc.settings import ConfigError
from ipc.systemd import listen_fds
from neurond import config, discovery, unixlisteners
from neurond.desired import Desired
from neurond.launch import Folders, Launch, Sockets
from neurond.supervisor import Given, Supervisor

_DAEMON = "neurond"
_NVML_DEADLINE_S = 10.0


def main() -> int:
    """The exit code."""
    given = _arguments()
    try:
        found = paths.config_file(config.FILE, given.config)
        settings = config.load(found, os.environ)
    except ConfigError as error:
        print(f"{_DAEMON}: {error}", file=sys.stderr)
        return EXIT_PERMANENT
    set_title(f"{_DAEMON}: supervisor")
    try:
        code: int = uvloop.run(_serve(settings))
        return code
    except OSError as error:
        print(f"{_DAEMON}: {error.strerror or error}", file=sys.stderr)
        return EXIT_TEMPORARY


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=_DAEMON, description="A Cortex node: serves models on this host's devices."
    )
    parser.add_argument("--config", type=Path, help="neuron.toml to read")
    version = f"{_DAEMON} {ipc.__version__}"
    parser.add_argument("--version", action="version", version=version)
    return parser.parse_args()


async def _serve(settings: config.Config) -> int:
    """Raises OSError when a socket can't be had."""
    folders = _folders(settings.paths)
    journal = Journal(_DAEMON, mode=settings.log.format)
    report_to(journal, asyncio.get_running_loop())
    bound = unixlisteners.bind(folders)
    try:
        specs, cuda_problem = _devices(settings.devices)
        name = settings.node.name or socket.gethostname()
        _empty(folders.metrics)
        given = Given(
            config=settings,
            launch=Launch(name, settings, _sockets(settings.node), folders),
            listeners=bound,
            journal=journal,
            events=EventLog(folders.state / "events.jsonl"),
            desired=Desired(folders.state / "desired.json", journal),
            specs=specs,
            cuda_problem=cuda_problem,
        )
        return await Supervisor(given).run()
    finally:
        unixlisteners.remove(folders)


def _folders(told: config.Paths) -> Folders:
    return Folders(
        state=told.state or paths.state_dir(_DAEMON),
        cache=told.cache or paths.cache_dir(_DAEMON),
        runtime=told.runtime or paths.runtime_dir(_DAEMON),
    )


def _sockets(node: config.Node) -> Sockets:
    inherited = listen_fds()
    return Sockets(
        http=listeners.take("http", node.listen, inherited),
        metrics=listeners.take("metrics", node.metrics_listen, inherited),
    )


def _devices(
    told: config.Devices,
) -> tuple[tuple[discovery.DeviceSpec, ...], str]:
    """The devices to be, and what is wrong with CUDA if anything is (S18)."""
    if told.kind not in ("auto", "cuda"):
        return discovery.plan_devices(told.kind, told.count, ()), ""
    gpus, problem = discovery.list_gpus(_NVML_DEADLINE_S)
    return discovery.plan_devices(told.kind, told.count, gpus), problem or ""


def _empty(folder: Path) -> None:
    """The workers' figures begin anew with the service, never with a worker."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)


if __name__ == "__main__":
    sys.exit(main())
