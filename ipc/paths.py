"""Where a daemon of this host keeps its files, and where its sockets are found.

Used by both daemons and cortexctl. `locate` decides and touches nothing; `state_dir`,
`cache_dir` and `runtime_dir` create what it names, for the owner alone.

    CORTEX_RUN_DIR=DIR   DIR/D/{state,cache,run}         tests, several stacks on a host
    service manager      $STATE_DIRECTORY, $CACHE_DIRECTORY, $RUNTIME_DIRECTORY
    root                 /var/lib/D, /var/cache/D, /run/D
    user                 $XDG_STATE_HOME/cortex/D, $XDG_CACHE_HOME/…, $XDG_RUNTIME_DIR/…
    else                 ./.run/D/{state,cache,run}
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

Kind = Literal["state", "cache", "run"]


class _Place(NamedTuple):
    """The names of one kind of folder under each convention."""

    managed: str
    system: str
    user: str
    user_default: str


_PLACES: dict[Kind, _Place] = {
    "state": _Place("STATE_DIRECTORY", "/var/lib", "XDG_STATE_HOME", ".local/state"),
    "cache": _Place("CACHE_DIRECTORY", "/var/cache", "XDG_CACHE_HOME", ".cache"),
    "run": _Place("RUNTIME_DIRECTORY", "/run", "XDG_RUNTIME_DIR", ""),
}
_CONTROL_SOCKET = "control.sock"


def config_file(name: str, explicit: Path | None = None) -> Path | None:
    """The file to read: `explicit` whether or not it exists, else the first found."""
    if explicit is not None:
        return explicit
    system = Path("/etc/cortex") / name
    user = _xdg(os.environ, "XDG_CONFIG_HOME", ".config")
    candidates = [system, user / "cortex" / name] if user else [system]
    return next((path for path in candidates if path.is_file()), None)


def state_dir(daemon: str) -> Path:
    """What must survive a restart: desired models, events."""
    return _created(locate(daemon, "state", os.environ, os.geteuid()))


def cache_dir(daemon: str) -> Path:
    """What can be made again: converted models."""
    return _created(locate(daemon, "cache", os.environ, os.geteuid()))


def runtime_dir(daemon: str) -> Path:
    """What dies with the boot: sockets."""
    return _created(locate(daemon, "run", os.environ, os.geteuid()))


def emptied(folder: Path) -> Path:
    """Made anew; what was in it belonged to the service's last life."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder


def control_sockets(daemon: str) -> list[Path]:
    """Where the daemon's control socket may be, nearest first; nothing is created."""
    if os.environ.get("CORTEX_RUN_DIR"):
        folders = [locate(daemon, "run", os.environ, os.geteuid())]
    else:
        user = _xdg(os.environ, "XDG_RUNTIME_DIR", "")
        folders = [
            locate(daemon, "run", os.environ, os.geteuid()),
            *([user / "cortex" / daemon] if user else []),
            _private(daemon, "run"),
            Path("/run") / daemon,
        ]
    return [folder / _CONTROL_SOCKET for folder in dict.fromkeys(folders)]


def locate(daemon: str, kind: Kind, environ: Mapping[str, str], uid: int) -> Path:
    """The folder of one kind for one daemon; the table above, line by line."""
    place = _PLACES[kind]
    if chosen := environ.get("CORTEX_RUN_DIR"):
        return Path(chosen).absolute() / daemon / kind
    if managed := environ.get(place.managed):
        return Path(managed.split(":")[0])  # a unit may name several
    if uid == 0:
        return Path(place.system) / daemon
    user = _xdg(environ, place.user, place.user_default)
    return user / "cortex" / daemon if user else _private(daemon, kind)


def _private(daemon: str, kind: Kind) -> Path:
    return Path(".run").absolute() / daemon / kind


def _xdg(environ: Mapping[str, str], variable: str, default: str) -> Path | None:
    """The user's base folder; relative values are to be ignored, says the standard."""
    value = environ.get(variable, "")
    if value.startswith("/"):
        return Path(value)
    home = environ.get("HOME", "")
    return Path(home) / default if default and home.startswith("/") else None


def _created(folder: Path) -> Path:
    """The folder and its missing parents, for the owner alone."""
    for path in reversed([folder, *folder.parents]):
        if not path.exists():
            path.mkdir(mode=0o700, exist_ok=True)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    return folder
