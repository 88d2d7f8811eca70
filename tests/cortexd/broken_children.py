"""A gateway whose metrics process is a shell command, for test_supervisor.

Runs as `python -m tests.cortexd.broken_children COMMAND --config FILE`.
"""

from __future__ import annotations

import sys

from cortexd import __main__ as daemon
from cortexd import launch
from ipc.child import Child, spawn


class Launch(launch.Launch):
    """`command` takes the place of `python -m cortexd.metrics`."""

    command = ""

    def metrics(self) -> Child:
        return spawn("metrics", ["/bin/sh", "-c", self.command])


if __name__ == "__main__":
    Launch.command = sys.argv.pop(1)
    daemon.Launch = Launch  # type: ignore[misc]
    sys.exit(daemon.main())
