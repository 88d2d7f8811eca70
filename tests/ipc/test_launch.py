"""Children with settings, and the end of those that are kept."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from ipc.child import Reaper, spawn
from ipc.keeper import Keeper, end
from ipc.launch import forget_gauges, launch
from ipc.paths import emptied
from ipc.unixsocket import bind_unix
from tests.ipc.processkit import open_fds, until

MODULE = """
import argparse, os
from ipc.child import die_with_parent, read_settings
die_with_parent()
parser = argparse.ArgumentParser()
parser.add_argument("--settings-fd", type=int)
told = read_settings(parser.parse_args().settings_fd)
os.write(told["fd"], f"{told['word']} {os.environ['EXTRA']}".encode())
"""


def module_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (folder / "launched.py").write_text(MODULE)
    root = Path(__file__).resolve().parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{root}")
    return "launched"


def test_a_child_has_its_settings_descriptors_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = module_in(tmp_path, monkeypatch)
    before = open_fds()
    reading, writing = os.pipe()
    settings = {"word": "hello", "fd": writing}
    child = launch("x", module, settings, fds=(writing,), environ={"EXTRA": "more"})
    os.close(writing)
    with open(reading) as heard:
        assert heard.read() == "hello more"
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED)
    os.close(child.pidfd)
    assert open_fds() == before
    assert "EXTRA" not in os.environ


def ended(folder: Path, *commands: str, timeout_s: float) -> list[str]:
    """How children ended that run these shell commands."""
    ends: list[str] = []

    async def work() -> None:
        reaper = Reaper(asyncio.get_running_loop())

        def keeper(command: str, ready: Path) -> Keeper:
            script = f"{command}; touch {ready}; while :; do sleep 0.05; done"
            return Keeper(
                ready.name,
                lambda: spawn("x", ["/bin/sh", "-c", script]),
                reaper,
                lambda _keeper, how: ends.append(str(how)),
            )

        files = [folder / f"ready-{number}" for number in range(len(commands))]
        keepers = [keeper(*pair) for pair in zip(commands, files, strict=True)]
        for one in keepers:
            one.start()
        await until(lambda: all(file.exists() for file in files))
        await end(keepers, timeout_s)
        assert {one.state for one in keepers} == {"stopped"}
        reaper.close()

    asyncio.run(work())
    return sorted(ends)


def test_children_end_by_sigterm(tmp_path: Path) -> None:
    assert ended(tmp_path, ":", ":", timeout_s=5.0) == ["killed by SIGTERM"] * 2


def test_who_needs_longer_is_killed(tmp_path: Path) -> None:
    ends = ended(tmp_path, "trap '' TERM", ":", timeout_s=0.2)
    assert ends == ["killed by SIGKILL", "killed by SIGTERM"]


def test_an_emptied_folder_is_there_and_empty_and_ours_alone(tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    for _ in range(2):
        assert emptied(folder) == folder
        assert os.listdir(folder) == []
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "counter.db").write_text("1")


def test_a_socket_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "control.sock"
    with pytest.raises(FileNotFoundError, match=str(path)):
        bind_unix(path, socket.SOCK_STREAM, 0o600)


def test_what_dead_workers_said_of_their_present_is_forgotten(tmp_path: Path) -> None:
    for name in ("gauge_livesum_1.db", "gauge_liveall_2.db", "counter_1.db"):
        (tmp_path / name).touch()
    forget_gauges(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["counter_1.db"]
