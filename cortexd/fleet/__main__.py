"""`cortexd: fleet`: polls the nodes and tells the workers what it knows.

A child of cortexd's supervisor, which holds fleet.sock: workers that connect while this
process is away wait in its queue. Topics there: "snapshot" (what workers route by),
"state" (the fleet's facts, for the supervisor), "events".

Invariant: losing this process loses history, never a decision: all that it knows it
can ask for again.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
from typing import Any

import uvloop

from cortexd import config
from cortexd.fleet.federation import Federation
from ipc.bugs import report_to
from ipc.journal import Journal
from ipc.process import die_with_parent, read_settings, set_title


def main() -> int:
    die_with_parent()
    set_title("cortexd: fleet")
    parser = argparse.ArgumentParser(prog="cortexd.fleet")
    parser.add_argument("--settings-fd", type=int, required=True)
    given = read_settings(parser.parse_args().settings_fd)
    uvloop.run(_serve(given))
    return 0


async def _serve(given: dict[str, Any]) -> None:
    settings = config.build(given["settings"])
    journal = Journal("cortexd", mode=settings.config.log.format)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # a terminal's; ours is TERM
    report_to(journal, loop)
    federation = Federation(settings, journal)
    federation.start(socket.socket(fileno=given["fleet_fd"]))
    await stopped.wait()
    await federation.stop()


if __name__ == "__main__":
    raise SystemExit(main())
