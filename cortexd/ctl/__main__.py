"""cortexctl: the operator's hands on the daemons of this host.

One short-lived process; it owns nothing. It talks to control sockets only, so it works
while HTTP is dead, and loads neither torch nor transformers nor numpy.
"""

from __future__ import annotations

import importlib
import os
import sys
from argparse import Namespace
from collections.abc import Sequence

import ipc
from cortexd.ctl import arguments
from cortexd.ctl.exits import CommandError, Exit
from cortexd.ctl.output import Output
from cortexd.ctl.screen import screen_for

# Verb → module and function: only the chosen verb's module is imported.
_VERBS = {
    "status": "show.status",
    "models": "show.models",
    "devices": "show.devices",
    "version": "show.version",
    "load": "loading.load",
    "unload": "loading.unload",
    "events": "events.events",
    "explain": "explain.explain",
    "fault": "fault.fault",
    "drill": "drill.drill",
}


def main(argv: Sequence[str] | None = None, *, prog: str = "cortexctl") -> int:
    """The entry point; returns the exit code."""
    args = arguments.parse(sys.argv[1:] if argv is None else argv, prog)
    if args.version:
        print(f"{prog} {ipc.__version__}")
        return Exit.DONE
    if args.verb is None:
        args.parser.print_help()
        return Exit.DONE
    output = _output(args)
    if args.verb == "help":
        return _help(args, output)
    return _guarded(args, output)


def _guarded(args: Namespace, output: Output) -> int:
    """Whatever ends the run: a code, never a traceback."""
    try:
        return _run(args, output)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # `cortexctl events | head`: the reader has enough; nothing may be flushed now
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.DONE
    except OSError as error:  # a full disk under `cortexctl … > file`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        output.say(f"cortexctl: {error.strerror or error}")
        return Exit.FAILED


def _run(args: Namespace, output: Output) -> int:
    from ipc.errors import ServiceError

    module, function = _VERBS[args.verb].split(".")
    verb = getattr(importlib.import_module(f"cortexd.ctl.{module}"), function)
    try:
        return int(verb(args, output))
    except (CommandError, ServiceError) as error:
        return output.failure(error)


def _help(args: Namespace, output: Output) -> int:
    if args.topic == "exit-codes":
        from cortexd.ctl.explain import exit_codes

        return exit_codes(output)
    argv = [args.topic, "--help"] if args.topic else ["--help"]
    args.parser.parse_args(argv)
    return Exit.DONE


def _output(args: Namespace) -> Output:
    screen = screen_for(sys.stdout, os.environ, colour=args.color, wide=args.wide)
    words = screen_for(sys.stderr, os.environ, colour=args.color)
    return Output(sys.stdout, sys.stderr, screen, words, args.json)


if __name__ == "__main__":
    sys.exit(main())
