"""`python -m neurond.frontend --settings-fd N`: the arbiter of a node's front end.

Started by the supervisor, which passes the listening sockets and, as a memfd, the
settings. The heavy imports happen here once, so that a worker's fork is cheap.
"""

from __future__ import annotations

import argparse
import os

# One thread per library: a forked worker must not find another's threads missing.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from ipc.child import read_settings  # noqa: E402  after the environment
from ipc.frontend import FrontendSettings, run  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m neurond.frontend")
    parser.add_argument("--settings-fd", type=int, required=True)
    settings = read_settings(parser.parse_args().settings_fd)
    listed = {name: tuple(settings[name]) for name in ("fds", "preload")}
    run(FrontendSettings(**{**settings, **listed}))


if __name__ == "__main__":
    main()
