"""The `cortexd` command: read the configuration, open the sockets, supervise.

exit 0    stopped as asked            100  the configuration must change first
exit 70   cannot go on, start again   111  a socket is in use; try again later
"""

from __future__ import annotations

import sys
from pathlib import Path
from socket import SOCK_STREAM, gethostname

from cortexd import config
from cortexd.launch import Launch, Sockets
from cortexd.supervisor import Effects, Supervisor
from ipc import daemon, listeners, paths
from ipc.eventlog import EventLog
from ipc.journal import Journal
from ipc.systemd import listen_fds
from ipc.unixsocket import bind_unix

_DAEMON = "cortexd"
_CONTROL_MODE = 0o660
_FLEET_MODE = 0o600


def main() -> int:
    """The exit code."""
    text = "The Cortex gateway: one address for many nodes."
    return daemon.run(_DAEMON, text, config.FILE, config.load, _serve)


async def _serve(settings: config.Settings) -> int:
    """Raises OSError when a socket can't be had."""
    folder = paths.runtime_dir(_DAEMON)
    journal = Journal(_DAEMON, mode=settings.config.log.format)
    control_path, fleet_path = folder / "control.sock", folder / "fleet.sock"
    # first: it tells a second gateway
    control = bind_unix(control_path, SOCK_STREAM, _CONTROL_MODE)
    try:
        launch = Launch(
            gateway=settings.config.gateway.name or gethostname(),
            settings=settings,
            sockets=_open(settings.config.gateway, fleet_path),
            fleet_path=fleet_path,
            metrics_folder=paths.emptied(folder / "metrics"),
        )
        events = EventLog(paths.state_dir(_DAEMON) / "events.jsonl")
        return await Supervisor(launch, control, Effects(journal, events)).run()
    finally:
        for path in (control_path, fleet_path):
            path.unlink(missing_ok=True)


def _open(gateway: config.Gateway, fleet_path: Path) -> Sockets:
    inherited = listen_fds()
    return Sockets(
        http=listeners.take("http", gateway.listen, inherited),
        metrics=listeners.take("metrics", gateway.metrics_listen, inherited),
        fleet=bind_unix(fleet_path, SOCK_STREAM, _FLEET_MODE),
    )


if __name__ == "__main__":
    sys.exit(main())
