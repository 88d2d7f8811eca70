"""A daemon's command: what it prints and how it exits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ipc
from ipc.child import EXIT_PERMANENT, EXIT_RESTART, EXIT_TEMPORARY

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from ipc import daemon
from ipc.settings import ConfigError

def load(path, environ):
    if path is None or not path.exists():
        raise ConfigError("can't be read", path=path)
    return path.read_text()

async def serve(word):
    if word == "taken":
        raise OSError(98, "0.0.0.0:1: Address already in use")
    if word == "unwritable":
        open("/proc/nowhere/file", "w")
    if word == "bug":
        try:
            raise KeyError("handle")
        except KeyError as error:
            raise RuntimeError("no longer known") from error
    print(open("/proc/self/comm").read(), end="")
    return 70

sys.exit(daemon.run("testd", "A daemon.", "test.toml", load, serve))
"""


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_exit_code_is_what_was_served(tmp_path: Path) -> None:
    file = tmp_path / "test.toml"
    file.write_text("fine")
    ended = run("--config", str(file))
    assert (ended.returncode, ended.stderr) == (70, "")
    assert ended.stdout.startswith("testd: supervis")


def test_a_bad_configuration_is_one_line_and_permanent(tmp_path: Path) -> None:
    ended = run("--config", str(tmp_path / "missing.toml"))
    assert ended.returncode == EXIT_PERMANENT
    assert ended.stderr.startswith("testd: ")
    assert len(ended.stderr.splitlines()) == 1


def test_a_socket_that_is_taken_is_one_line_and_temporary(tmp_path: Path) -> None:
    file = tmp_path / "test.toml"
    file.write_text("taken")
    ended = run("--config", str(file))
    assert ended.returncode == EXIT_TEMPORARY
    assert ended.stderr == "testd: 0.0.0.0:1: Address already in use\n"


def test_a_file_that_is_in_the_way_is_named(tmp_path: Path) -> None:
    file = tmp_path / "test.toml"
    file.write_text("unwritable")
    ended = run("--config", str(file))
    assert ended.returncode == EXIT_TEMPORARY
    assert ended.stderr == "testd: /proc/nowhere/file: No such file or directory\n"


def test_a_bug_is_one_line_with_its_cause_and_asks_for_a_restart(
    tmp_path: Path,
) -> None:
    file = tmp_path / "test.toml"
    file.write_text("bug")
    ended = run("--config", str(file))
    assert ended.returncode == EXIT_RESTART
    assert len(ended.stderr.splitlines()) == 1
    assert "error: the supervisor failed" in ended.stderr
    assert "RuntimeError: no longer known <- KeyError: 'handle'" in ended.stderr
    assert "<string>:20 serve" in ended.stderr


@pytest.mark.parametrize(
    ("flag", "text"),
    [("--version", f"testd {ipc.__version__}"), ("--help", "test.toml to read")],
)
def test_version_and_help_are_answered(flag: str, text: str) -> None:
    ended = run(flag)
    assert ended.returncode == 0
    assert text in ended.stdout
