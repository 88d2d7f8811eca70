"""Every error explains itself, offline."""

from __future__ import annotations

import shlex

import pytest

from cortexd.ctl import arguments
from cortexd.ctl.exits import MEANING, CommandError, Exit, exit_for
from cortexd.ctl.explain import find
from cortexd.ctl.output import describe
from ipc.errors import TABLE, error_for


@pytest.mark.parametrize(
    "name", ["CX-LOAD-NOROOM", "cx-load-noroom", "insufficient_vram"]
)
def test_a_code_is_found_by_either_name(name: str) -> None:
    assert find(name).ref == "CX-LOAD-NOROOM"


def test_an_unknown_code_is_not_found_and_the_nearest_is_named() -> None:
    with pytest.raises(CommandError, match="did you mean queue_full") as caught:
        find("queue_ful")

    assert caught.value.exit_code == Exit.NOT_FOUND


@pytest.mark.parametrize("row", TABLE.values(), ids=lambda row: row.ref)
def test_every_next_command_of_ours_is_one_that_exists(row: object) -> None:
    command = shlex.split(row.next_command)  # type: ignore[attr-defined]
    if command[0] == "cortexctl":
        arguments.parse(command[1:])
    else:
        assert command[0] == "journalctl"


def test_every_exit_code_has_a_meaning() -> None:
    assert set(MEANING) == set(Exit)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("model_not_found", Exit.NOT_FOUND),
        ("insufficient_permissions", Exit.NOT_ALLOWED),
        ("insufficient_vram", Exit.REFUSED),
        ("internal_error", Exit.FAILED),
    ],
)
def test_a_daemons_refusal_has_its_exit_code(code: str, expected: Exit) -> None:
    assert exit_for(error_for(code, "text")) == expected


def test_an_error_is_described_with_its_fields_and_next_command() -> None:
    error = error_for("model_loading", "at 42%", fields={"percent": 42})

    assert describe(error) == {
        "percent": 42,
        "code": "CX-MODEL-LOADING",
        "message": "CX-MODEL-LOADING: at 42%",
        "next": "cortexctl models",
        "exit": 1,
    }
