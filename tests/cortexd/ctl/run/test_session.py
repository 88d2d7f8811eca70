"""`cortex run`: two real processes, started, watched and stopped in order."""

from __future__ import annotations

import asyncio
import io
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cortexd.ctl.run.console import Console
from cortexd.ctl.run.daemon import Daemon
from cortexd.ctl.run.readiness import Ready
from cortexd.ctl.run.session import Part, Session
from cortexd.ctl.screen import Screen
from tests.cortexd.ctl.running import environment, socket_path

NODE, GATEWAY = "node", "gateway"


class _Run:
    """One session over stand-in daemons, and what it wrote and announced."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.out = io.StringIO()
        self.announced: list[Ready] = []
        self.prepared: list[Any] = []
        self.words: dict[str, list[str]] = {NODE: [], GATEWAY: []}
        self.on_ready = lambda: os.kill(os.getpid(), signal.SIGTERM)

    def part(self, kind: str) -> Part:
        path = socket_path(self.run_dir, kind)
        module = "tests.cortexd.ctl.standin"
        argv = [sys.executable, "-m", module, str(path), kind, *self.words[kind]]
        name = "neurond" if kind == NODE else "cortexd"
        return Part(name, argv, path, self.prepared.append)

    def announce(self, ready: Ready, _facts: Any, _took_s: float) -> None:
        self.announced.append(ready)
        self.on_ready()

    def go(self, start_timeout_s: float = 20.0) -> int:
        session = Session(
            self.part(NODE),
            self.part(GATEWAY),
            environment(self.run_dir),
            Console(self.out, Screen()),
            announce=self.announce,
            start_timeout_s=start_timeout_s,
        )
        return asyncio.run(session.run())

    @property
    def lines(self) -> list[str]:
        return self.out.getvalue().splitlines()


@pytest.fixture
def run(tmp_path: Path) -> _Run:
    return _Run(tmp_path)


def test_both_start_a_model_loads_and_a_signal_stops_the_gateway_first(
    run: _Run,
) -> None:
    run.words[NODE] = ["starting"]

    code = run.go()

    text = run.out.getvalue()
    assert code == 0, text
    assert run.announced == [Ready("smollm2-135m-instruct")]
    assert "weights" in text
    assert text.index("gateway  stopping") < text.index("node  stopping")
    assert run.lines[-1].endswith("cortex  stopped")


def test_the_gateway_is_prepared_with_what_the_node_says(run: _Run) -> None:
    run.go()

    before_node, before_gateway = run.prepared
    assert before_node == {}
    assert before_gateway["listen"]["http"] == "127.0.0.1:13131"


def test_a_daemon_that_dies_at_start_is_one_line_with_its_last_words(
    run: _Run,
) -> None:
    run.words[GATEWAY] = ["die"]

    code = run.go()

    assert code == 1
    assert run.lines[-1].endswith(
        "cortexd stopped before it was ready, exit 100 (permanent): "
        "12:00:01 gateway  error: neuron.toml:3: unknown key 'lisen'"
    )
    assert any("node  stopping" in line for line in run.lines)


def test_a_daemon_that_is_killed_later_ends_the_run(run: _Run) -> None:
    def children() -> list[str]:
        return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()

    before = children()  # of earlier tests: compilers of grammars stay

    def kill_the_node() -> None:
        node = next(pid for pid in children() if pid not in before)
        os.kill(int(node), signal.SIGKILL)

    run.on_ready = kill_the_node

    assert run.go() == 1
    assert "neurond stopped, killed by SIGKILL" in run.lines[-1]


def test_a_second_signal_does_not_wait_for_anybody(run: _Run) -> None:
    def insist() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

    run.words = {NODE: ["stubborn"], GATEWAY: ["stubborn"]}
    run.on_ready = insist
    began_s = time.monotonic()

    code = run.go()

    assert code == 0
    assert time.monotonic() - began_s < 15
    assert "node  stopping" not in run.out.getvalue()


def test_a_daemon_that_ignores_sigterm_is_killed_in_the_end(tmp_path: Path) -> None:
    async def scenario() -> str:
        lines: list[str] = []
        daemon = Daemon(
            "deaf",
            ["sh", "-c", "trap '' TERM; echo up; printf last; exec sleep 60"],
            dict(os.environ),
            on_line=lambda _name, line: lines.append(line),
        )
        while not lines:
            await asyncio.sleep(0.01)
        end = await daemon.stop(0.2)
        return f"{end}; {lines}; {daemon.last_line}"

    assert asyncio.run(scenario()) == "killed by SIGKILL; ['up', 'last']; last"


def test_a_run_that_is_killed_takes_its_daemons_with_it() -> None:
    script = """
import asyncio, os
from cortexd.ctl.run.daemon import Daemon
async def main():
    daemon = Daemon("d", ["sleep", "60"], dict(os.environ), on_line=print)
    print(daemon.pid, flush=True)
    await daemon.exited
asyncio.run(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pidfd = os.pidfd_open(int(process.stdout.readline()))
        process.kill()
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)

    assert poll.poll(5000)
    os.close(pidfd)


def test_a_start_that_takes_too_long_says_what_it_waited_for(run: _Run) -> None:
    run.words[NODE] = ["starting", "stuck"]

    began_s = time.monotonic()
    code = run.go(start_timeout_s=1.5)

    assert code == 1
    assert time.monotonic() - began_s < 10
    assert run.lines[-1].endswith(
        "not ready after 1s; a model is still being loaded, see the lines above"
    )


def test_a_folder_that_cannot_be_written_is_one_line(run: _Run) -> None:
    def refuse(_facts: Any) -> None:
        raise PermissionError(13, "Permission denied", "/srv/etc")

    run.part = lambda kind: Part(kind, ["true"], run.run_dir, refuse)  # type: ignore[method-assign]

    assert run.go() == 1
    assert (
        "can't be prepared: [Errno 13] Permission denied: '/srv/etc'" in run.lines[-1]
    )


def test_a_command_that_does_not_exist_is_one_line(run: _Run) -> None:
    session = Session(
        Part("neurond", ["/nonexistent/neurond"], run.run_dir / "x"),
        run.part(GATEWAY),
        {},
        Console(run.out, Screen()),
        announce=run.announce,
        start_timeout_s=5,
    )

    assert asyncio.run(session.run()) == 1
    assert len(run.lines) == 1
    assert "neurond can't be started" in run.lines[0]
