"""A device process started by exec: `python -m neurond.device --settings-fd N`.

The way in when the zygote can't be used. The settings are the dict of the node's config
plus what a fork would have handed over: name, kind, generation, link_fd, page_fd; or
job = "convert" and the link alone.
"""

from __future__ import annotations

import argparse
import signal

from ipc.child import die_with_parent, read_settings
from neurond.device import worker


def main() -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is not for us
    parser = argparse.ArgumentParser(prog="neurond.device")
    parser.add_argument("--settings-fd", type=int, required=True)
    settings = read_settings(parser.parse_args().settings_fd)
    if settings.get("job") == "convert":
        from neurond.device import convert

        convert.main(settings["link_fd"])
    worker.main(
        settings["name"],
        settings["kind"],
        settings["generation"],
        settings["link_fd"],
        settings["page_fd"],
        settings,
    )


if __name__ == "__main__":
    main()
