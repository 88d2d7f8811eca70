"""`python -m cortexd.frontend --settings-fd N`: the arbiter of the gateway's workers.

Started by the supervisor, which passes the listening socket. What the workers need is
imported here once, so that a worker's fork is cheap.
"""

from __future__ import annotations

import argparse

from ipc.frontend import FrontendSettings, run
from ipc.process import read_settings


def main() -> None:
    parser = argparse.ArgumentParser(prog="cortexd.frontend")
    parser.add_argument("--settings-fd", type=int, required=True)
    settings = read_settings(parser.parse_args().settings_fd)
    listed = {name: tuple(settings[name]) for name in ("fds", "preload")}
    run(FrontendSettings(**{**settings, **listed}))


if __name__ == "__main__":
    main()
