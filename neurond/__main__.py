"""The `neurond` command: read the configuration, open the sockets, supervise.

exit 0    stopped as asked            100  the configuration must change first
exit 70   cannot go on, start again   111  a socket is in use; try again later
"""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

from ipc import daemon, listeners, paths
from ipc.bugs import report_to
from ipc.eventlog import EventLog
from ipc.journal import Journal
from ipc.systemd import listen_fds
from neurond import config, discovery, unixlisteners
from neurond.composition import Given
from neurond.desired import Desired
from neurond.launch import Folders, Launch, Sockets
from neurond.supervisor import Supervisor

_DAEMON = "neurond"
_NVML_DEADLINE_S = 10.0


def main() -> int:
    """The exit code."""
    text = "A Cortex node: serves models on this host's devices."
    return daemon.run(_DAEMON, text, config.FILE, config.load, _serve)


async def _serve(settings: config.Config) -> int:
    """Raises OSError when a socket can't be had."""
    folders = _folders(settings.paths)
    journal = Journal(_DAEMON, mode=settings.log.format)
    report_to(journal, asyncio.get_running_loop())
    bound = unixlisteners.bind(folders)
    try:
        specs, cuda_problem = _devices(settings.devices)
        name = settings.node.name or socket.gethostname()
        paths.emptied(folders.metrics)
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
        state=_made(told.state) if told.state else paths.state_dir(_DAEMON),
        cache=_made(told.cache) if told.cache else paths.cache_dir(_DAEMON),
        runtime=_made(told.runtime) if told.runtime else paths.runtime_dir(_DAEMON),
    )


def _made(folder: Path) -> Path:
    """Raises OSError naming it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"{folder}: {error.strerror}") from error
    return folder


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
    return discovery.find_devices(told.kind, told.count, _NVML_DEADLINE_S)


if __name__ == "__main__":
    sys.exit(main())
