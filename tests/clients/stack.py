"""`cortex run` with the embedded model, as a user starts it, on ports of its own.

The converted weights are kept between runs below `.cache`, everything else is the
test's. The curl line and the address are read from what the program printed.
"""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
READY_S = 110.0
STOP_S = 30.0
MODEL = "smollm2-135m-instruct"
EMBEDDER = "all-minilm-l6-v2"


class Stack:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.printed: list[str] = []

    def __enter__(self) -> Stack:
        environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "NEURON_PATHS__CACHE": str(ROOT / ".cache" / "neurond"),
        }
        ports = [f"--{name}=0" for name in ("port", "metrics-port", "node-port")]
        argv = [sys.executable, "-m", "cortexd.ctl.cortex", "run", *ports]
        self.process = subprocess.Popen(
            [*argv, "--node-metrics-port=0", f"--run-dir={self._folder}"],
            cwd=self._folder,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._pump, daemon=True).start()
        try:
            self._await(r"ready after .* at (http://\S+)")
        except BaseException:
            self.process.kill()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        if self.process.poll() is None:
            self.stop()

    @property
    def url(self) -> str:
        found = re.search(r"at (http://\S+)", "".join(self.printed))
        assert found is not None
        return found[1]

    @property
    def curl(self) -> str:
        """The line that it printed to be pasted."""
        self._await(r"^\s*(curl .+)$")
        found = re.search(r"^\s*(curl .+)$", "".join(self.printed), re.MULTILINE)
        assert found is not None
        return found[1]

    def control(self, *words: str) -> None:
        """What an operator types."""
        subprocess.run(
            [sys.executable, "-m", "cortexd.ctl", *words],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "CORTEX_RUN_DIR": str(self._folder),
            },
            check=True,
            timeout=READY_S,
            stdout=subprocess.DEVNULL,
        )

    def stop(self) -> int:
        """Ctrl-C; the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(STOP_S)

    def _pump(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _await(self, pattern: str) -> None:
        end_s = time.monotonic() + READY_S
        while not re.search(pattern, "".join(self.printed), re.MULTILINE):
            line = self._lines.get(timeout=max(0.1, end_s - time.monotonic()))
            assert line is not None, "".join(self.printed)
            self.printed.append(line)
