"""A bug in a supervisor: the daemon says so and asks for a new start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ipc.child import EXIT_RESTART
from tests.harness import ROOT
from tests.tomltext import to_toml

LOCAL = {"listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0"}
CONFIGS = {
    "cortexd": {"gateway": LOCAL},
    "neurond": {"node": LOCAL, "devices": {"kind": "fake"}, "models": {"default": []}},
}


@pytest.mark.parametrize("daemon", CONFIGS)
def test_s13_a_supervisor_that_fails_ends_the_daemon_with_the_cause(
    daemon: str, tmp_path: Path
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(to_toml(CONFIGS[daemon]))
    ended = subprocess.run(
        [sys.executable, "-m", "tests.broken_daemon", daemon, "--config", str(file)],
        cwd=ROOT,
        env={**os.environ, "CORTEX_RUN_DIR": str(tmp_path), "CORTEX_LOG": "json"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=30,
        check=False,
    )
    assert ended.returncode == EXIT_RESTART
    (line,) = [x for x in ended.stderr.splitlines() if b'"event": "bug"' in x]
    bug = json.loads(line)
    assert bug["cause"] == "LookupError: no such handle"
    assert "_tick" in bug["where"]
    assert not list(tmp_path.rglob("*.sock"))
