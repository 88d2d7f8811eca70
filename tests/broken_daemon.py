"""A daemon whose supervisor has a bug, for test_broken_daemon.

Runs as `python -m tests.broken_daemon cortexd|neurond --config FILE`.
"""

from __future__ import annotations

import importlib
import sys


def main() -> int:
    daemon = importlib.import_module(f"{sys.argv.pop(1)}.__main__")

    class Broken(daemon.Supervisor):  # type: ignore[misc, name-defined]
        async def _tick(self) -> None:
            raise LookupError("no such handle")

    daemon.Supervisor = Broken
    code: int = daemon.main()
    return code


if __name__ == "__main__":
    sys.exit(main())
