"""The commands of both daemons: read the configuration, then serve until the end.

exit 70   cannot go on: nobody expected this, the journal has the cause
exit 100  the configuration must change first
exit 111  a socket is in use, or the host is short of something; try again later
else      what `serve` says
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import uvloop

import ipc
from ipc import paths
from ipc.bugs import where
from ipc.child import EXIT_PERMANENT, EXIT_RESTART, EXIT_TEMPORARY, set_title
from ipc.errors import cause_chain
from ipc.journal import Journal
from ipc.settings import ConfigError

T = TypeVar("T")


def run(
    daemon: str,
    description: str,
    file: str,
    load: Callable[[Path | None, Mapping[str, str]], T],
    serve: Callable[[T], Coroutine[Any, Any, int]],
) -> int:
    """The exit code. `serve` may raise OSError: a socket that can't be had."""
    explicit = _arguments(daemon, description, file).config
    try:
        settings = load(paths.config_file(file, explicit), os.environ)
    except ConfigError as error:
        print(f"{daemon}: {error}", file=sys.stderr)
        return EXIT_PERMANENT
    set_title(f"{daemon}: supervisor")
    try:
        code: int = uvloop.run(serve(settings))
        return code
    except OSError as error:
        print(f"{daemon}: {_words(error)}", file=sys.stderr)
        return EXIT_TEMPORARY
    except Exception as error:  # the supervisor's border
        Journal(daemon).error(
            "the supervisor failed",
            event="bug",
            cause=" <- ".join(cause_chain(error)),
            where=where(error),
        )
        return EXIT_RESTART


def _words(error: OSError) -> str:
    words = error.strerror or str(error)
    return f"{error.filename}: {words}" if error.filename else words


def _arguments(daemon: str, description: str, file: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=daemon, description=description)
    parser.add_argument("--config", type=Path, help=f"{file} to read")
    version = f"{daemon} {ipc.__version__}"
    parser.add_argument("--version", action="version", version=version)
    return parser.parse_args()
