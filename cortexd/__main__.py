"""The `cortexd` command: read the configuration, open the sockets, supervise.

exit 0    stopped as asked            100  the configuration must change first
exit 111  a socket is in use by somebody else; try again later
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sys
from pathlib import Path

import uvloop

import ipc
from cortexd import config
from cortexd.launch import Launch, Sockets
from cortexd.supervisor import Effects, Supervisor
from ipc import listeners, paths
from ipc.child import EXIT_PERMANENT, EXIT_TEMPORARY, set_title
from ipc.eventlog import EventLog
from ipc.journal import Journal
from ipc.settings import ConfigError
from ipc.systemd import listen_fds
from ipc.unixsocket import bind_unix

_DAEMON = "cortexd"
_CONTROL_MODE = 0o660
_FLEET_MODE = 0o600


def main() -> int:
    """The exit code."""
    given = _arguments()
    try:
        settings = config.load(paths.config_file(config.FILE, given.config), os.environ)
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
        prog=_DAEMON, description="The Cortex gateway: one address for many nodes."
    )
    parser.add_argument("--config", type=Path, help="cortex.toml to read")
    version = f"{_DAEMON} {ipc.__version__}"
    parser.add_argument("--version", action="version", version=version)
    return parser.parse_args()


async def _serve(settings: config.Settings) -> int:
    """Raises OSError when a socket can't be had."""
    folder = paths.runtime_dir(_DAEMON)
    journal = Journal(_DAEMON, mode=settings.config.log.format)
    control_path, fleet_path = folder / "control.sock", folder / "fleet.sock"
    control = _bind(control_path, _CONTROL_MODE)  # first: it tells a second gateway
    try:
        launch = Launch(
            gateway=settings.config.gateway.name or socket.gethostname(),
            settings=settings,
            sockets=_open(settings.config.gateway, fleet_path),
            fleet_path=fleet_path,
            metrics_folder=_emptied(folder / "metrics"),
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
        fleet=_bind(fleet_path, _FLEET_MODE),
    )


def _bind(path: Path, mode: int) -> socket.socket:
    try:
        return bind_unix(path, socket.SOCK_STREAM, mode)
    except OSError as error:
        raise OSError(error.errno, f"{path}: {error.strerror}") from error


def _emptied(folder: Path) -> Path:
    """The workers' figures begin anew with the service, never with a worker."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder


if __name__ == "__main__":
    sys.exit(main())
