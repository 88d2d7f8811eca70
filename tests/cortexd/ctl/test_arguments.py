"""The command tree: verbs are alike, typos answered, help is short, examples first."""

from __future__ import annotations

import shlex

import pytest

from cortexd.ctl import arguments
from cortexd.ctl.exits import Exit


@pytest.mark.parametrize("verb", arguments.VERBS)
def test_every_verb_takes_json_socket_and_color(verb: str) -> None:
    more = {"load": ["tiny"], "unload": ["tiny"], "fault": ["list"]}.get(verb, [])

    args = arguments.parse([verb, "--json", "--socket", "/x", "--color=never", *more])

    assert args.json
    assert str(args.socket) == "/x"


@pytest.mark.parametrize("verb", ["", *arguments.VERBS])
def test_help_is_short_with_two_examples_first(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        arguments.parse([verb, "--help"] if verb else ["--help"])

    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert len(text.splitlines()) <= 40
    assert max(map(len, text.splitlines())) <= 80
    first, second = (f"cortexctl {line}" for line in arguments.EXAMPLES[verb])
    assert 0 < text.index(first) < text.index(second) < text.index("options:")


@pytest.mark.parametrize("verb", arguments.EXAMPLES)
def test_every_example_is_a_command_that_parses(verb: str) -> None:
    for line in arguments.EXAMPLES[verb]:
        arguments.parse(shlex.split(line.partition("|")[0]))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["statsu"], "there is no verb statsu; did you mean status?"),
        (["zzz"], "there is no verb zzz\n"),
        (["load", "x", "--timout", "5"], "did you mean --timeout?"),
        (["load", "x", "--timeout", "soon"], "'soon' is not a time such as 5m"),
        (["load", "x", "--context", "big"], "'big' is not a size such as 32k"),
        (["load"], "MODEL"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        arguments.parse(argv)

    text = capsys.readouterr().err
    assert caught.value.code == Exit.USAGE
    assert words in text
    assert len(text.splitlines()) == 2


def test_sizes_and_times_are_understood_as_people_write_them() -> None:
    args = arguments.parse(["load", "x", "--context", "32k", "--timeout", "5m"])

    assert args.context == 32768
    assert args.timeout == 300
