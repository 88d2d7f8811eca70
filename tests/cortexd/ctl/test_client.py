"""What an operator is told about a conversation that failed."""

from __future__ import annotations

import grp
from pathlib import Path

import pytest

from cortexd.ctl.client import trouble
from cortexd.ctl.exits import Exit
from ipc.controlwire import ControlClosed

PATH = Path("/run/neurond/control.sock")


def test_who_may_not_open_the_socket_learns_the_group_and_the_cure(
    tmp_path: Path,
) -> None:
    path = tmp_path / "control.sock"
    path.touch()
    group = grp.getgrgid(path.stat().st_gid).gr_name

    problem = trouble(path, PermissionError(13, "Permission denied"))

    assert problem.exit_code == Exit.NOT_ALLOWED
    assert f"group {group} only" in str(problem)
    assert problem.next_command.startswith(f"sudo usermod -aG {group} ")


def test_a_socket_in_a_folder_that_may_not_be_entered_names_that_folders_group(
    tmp_path: Path,
) -> None:
    problem = trouble(tmp_path / "neurond" / "control.sock", PermissionError())

    assert problem.exit_code == Exit.NOT_ALLOWED


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError(), "no daemon answers at"),
        (ConnectionRefusedError(), "no daemon answers at"),
        (ControlClosed("the daemon closed the connection"), "neurond closed the"),
        (TimeoutError(), "gave no reply in 2 s (its owner can't be asked)"),
    ],
)
def test_a_daemon_that_can_not_be_talked_to_is_unreachable(
    error: Exception, words: str
) -> None:
    problem = trouble(PATH, error)

    assert problem.exit_code == Exit.UNREACHABLE
    assert words in str(problem)
    assert problem.next_command
