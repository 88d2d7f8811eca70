"""The command tree of cortexctl: verbs, flags, examples. Data for argparse.

Used by cortexctl. Every verb takes --json and --socket. A misspelt verb or flag is
answered with the nearest one, and nothing is done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from cortexd.ctl.exits import Exit
from cortexd.ctl.units import parse_count, parse_span

T = TypeVar("T")

EXAMPLES = {
    "": ("status", "load smollm2-135m-instruct"),
    "status": ("status", "status --json | jq .ready"),
    "models": ("models", "models --json | jq -r '.[].id'"),
    "devices": ("devices --json", "devices reset-done gpu-0"),
    "load": ("load smollm2-135m-instruct", "load tiny --source /models/tiny"),
    "unload": ("unload smollm2-135m-instruct", "unload tiny --yes"),
    "events": ("events --limit 50", "events --follow --json"),
    "explain": ("explain CX-LOAD-NOROOM", "explain queue_full"),
    "fault": ("fault list", "fault inject gpu-0 device_assert --at-step 20"),
    "drill": ("drill", "drill --kinds sigkill,hang --streams 8"),
    "version": ("version", "version --json"),
    "help": ("help exit-codes", "help load"),
}
SUMMARY = {
    "status": "node, gateway, devices, models and what needs attention",
    "models": "models: state, progress, memory, requests",
    "devices": "devices: state, memory, requests; or that one was reset",
    "load": "load a model and wait until it serves",
    "unload": "unload a model and give its memory back",
    "events": "what happened on the node, from its log",
    "explain": "cause and cure of an error code; works offline",
    "fault": "faults that can be simulated, or one ordered",
    "drill": "faults on a live node, and streams that must survive them",
    "version": "versions of cortexctl and of the daemons that answer",
    "help": "a verb's help, or `help exit-codes`",
}
VERBS = tuple(SUMMARY)
_ABOUT = "See and steer the Cortex daemons of this host."
# what `cortex` does beside cortexctl's verbs
_MORE = {
    "cortex": "\n  cortex run                 a node and a gateway, in the foreground"
    "\n  cortex serve --config F    the gateway daemon, cortexd"
}


class Parser(argparse.ArgumentParser):
    """Complains in one line, with the nearest word of the whole tree."""

    words: frozenset[str] = frozenset((*VERBS, "inject", "list"))

    def learn(self, parser: argparse.ArgumentParser) -> None:
        """Flags of a verb are flags to misspell, too."""
        self.words |= set(parser._option_string_actions)

    def error(self, message: str) -> NoReturn:
        import difflib

        wrong = _quoted(message)
        near = difflib.get_close_matches(wrong, self.words, n=1) if wrong else []
        if wrong and "invalid choice" in message:
            message = f"there is no verb {wrong}"
        hint = f"; did you mean {near[0]}?" if near else ""
        sys.stderr.write(f"{self.prog}: {message}{hint}\n  next: {self.prog} --help\n")
        sys.exit(Exit.USAGE)


def _quoted(message: str) -> str:
    """The word that argparse complains about."""
    if "invalid choice: '" in message:
        return message.partition("invalid choice: '")[2].partition("'")[0]
    return message.rpartition("unrecognized arguments: ")[2].split(" ")[0]


def build(prog: str = "cortexctl") -> Parser:
    """The whole tree."""
    parser = Parser(
        prog=prog,
        description=_described(_ABOUT, prog, "") + _MORE.get(prog, ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    verbs = parser.add_subparsers(
        dest="verb", metavar="VERB", parser_class=Parser, prog=prog
    )
    for verb in VERBS:
        of_verb = _verb(verbs, verb, prog)
        _ADD[verb](of_verb)
        parser.learn(of_verb)
    return parser


def _verb(verbs: Any, verb: str, prog: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        verb,
        help=SUMMARY[verb],
        description=_described(SUMMARY[verb].capitalize() + ".", prog, verb),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="data for programs")
    parser.add_argument(
        "--socket", type=Path, metavar="PATH", help="this control socket and no other"
    )
    parser.add_argument(
        "--color", choices=("auto", "always", "never"), default="auto", help="colours"
    )
    parser.add_argument("--wide", action="store_true", help="nothing shortened")
    return parser


def _add_load(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="id, as `models` shows it")
    parser.add_argument("--source", help="folder or .gguf file; for a model new here")
    parser.add_argument("--dtype", help="auto, bfloat16, float16 or float32")
    parser.add_argument("--quant", help="how weights are kept")
    parser.add_argument(
        "--context", type=human(parse_count, "a size such as 32k"), metavar="TOKENS"
    )
    parser.add_argument("--priority", type=int, help="higher wins; default 100")
    parser.add_argument(
        "--pinned", action="store_true", default=None, help="never evicted"
    )
    _add_waiting(parser)


def _add_unload(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="id, as `models` shows it")
    parser.add_argument(
        "--yes", action="store_true", help="also while it serves requests"
    )
    _add_waiting(parser)


def _add_waiting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-wait", dest="wait", action="store_false", help="return at once"
    )
    parser.add_argument(
        "--timeout",
        type=human(parse_span, "a time such as 5m"),
        default=900.0,
        metavar="TIME",
        help="stop waiting after this long (exit 8); default 15m",
    )


def _add_events(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--since", type=int, metavar="ID", help="all after this one")
    parser.add_argument("--limit", type=int, help="the newest ones; default 20")
    parser.add_argument("--follow", "-f", action="store_true", help="and those to come")
    parser.add_argument(
        "--timeout",
        type=human(parse_span, "a time such as 5m"),
        metavar="TIME",
        help="stop following after this long",
    )


def _add_devices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        choices=("reset-done",),
        metavar="reset-done",
        help="what DEVICE waited for is done: try it again",
    )
    parser.add_argument("device", nargs="?", metavar="DEVICE")


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("code", nargs="?", help="CX-… or API code; none: all of them")


def _add_fault(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("inject", "list"), metavar="inject|list")
    parser.add_argument("device", nargs="?", metavar="DEVICE", help="to have the fault")
    parser.add_argument("kind", nargs="?", metavar="KIND", help="as `list` has it")
    parser.add_argument(
        "--at-step", type=int, default=1, metavar="N", help="steps from now; 0: at once"
    )
    parser.add_argument(
        "--request", type=int, default=0, metavar="ID", help="only in steps with it"
    )
    parser.add_argument(
        "--times", type=int, default=1, metavar="N", help="0: not any more"
    )


def _add_drill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="to be asked; default: the first that chats")
    parser.add_argument(
        "--kinds", help="of faults, with commas; default: all mild ones"
    )
    parser.add_argument("--streams", type=int, default=4, help="at a time; default 4")
    parser.add_argument("--seed", type=int, default=1, help="of the moments of faults")
    parser.add_argument(
        "--timeout",
        type=human(parse_span, "a time such as 5m"),
        default=120.0,
        metavar="TIME",
        help="for the device to serve again; default 2m",
    )


def _add_help(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("topic", nargs="?", help="a verb, or exit-codes")


def _add_nothing(_parser: argparse.ArgumentParser) -> None:
    return


_ADD: dict[str, Callable[[argparse.ArgumentParser], None]] = dict.fromkeys(
    VERBS, _add_nothing
) | {
    "load": _add_load,
    "unload": _add_unload,
    "events": _add_events,
    "devices": _add_devices,
    "explain": _add_explain,
    "fault": _add_fault,
    "drill": _add_drill,
    "help": _add_help,
}


def human(parse: Callable[[str], T], wanted: str) -> Callable[[str], T]:
    """`parse` for argparse, whose own complaint names a function."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from None

    return convert


def _described(summary: str, prog: str, verb: str) -> str:
    """Examples come first: most readers need nothing else."""
    return "\n".join([summary, "", *(f"  {prog} {line}" for line in EXAMPLES[verb])])


def parse(argv: Sequence[str], prog: str = "cortexctl") -> argparse.Namespace:
    """The parsed command line; exits 2 with one line when it can't be."""
    parser = build(prog)
    args = parser.parse_args(argv)
    args.parser = parser
    return args
