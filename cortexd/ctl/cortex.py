"""The `cortex` command: run, serve, and everything that cortexctl does.

cortex run               a node and a gateway in the foreground, nothing configured
cortex serve --config F  the gateway daemon, cortexd
cortex VERB …            cortexctl VERB …
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cortexd.ctl.exits import Exit


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point; returns the exit code."""
    try:
        return _main(argv)
    except KeyboardInterrupt:  # before anything was started that could be stopped
        return Exit.INTERRUPTED


def _main(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["run"]:
        from cortexd.ctl.run.__main__ import main as run

        return run(words[1:])
    if words[:1] == ["serve"]:
        from cortexd.__main__ import main as serve

        sys.argv = ["cortexd", *words[1:]]
        return serve() or 0
    from cortexd.ctl.__main__ import main as control

    return control(words, prog="cortex")


if __name__ == "__main__":
    sys.exit(main())
