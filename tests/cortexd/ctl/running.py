"""Starting stand-in daemons and cortexctl itself as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

DEADLINE_S = 10.0


def socket_path(run_dir: Path, kind: str) -> Path:
    daemon = "neurond" if kind == "node" else "cortexd"
    return run_dir / daemon / "run" / "control.sock"


@contextmanager
def stand_in(run_dir: Path, kind: str, *words: str) -> Iterator[Path]:
    """A daemon that answers at the yielded socket."""
    path = socket_path(run_dir, kind)
    argv = [sys.executable, "-m", "tests.cortexd.ctl.standin", str(path), kind, *words]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "serving" in process.stdout.readline()
            yield path
        finally:
            process.terminate()
            process.wait(DEADLINE_S)


def cortexctl(
    run_dir: Path, *words: str, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """One run against the daemons below `run_dir`."""
    return subprocess.run(
        [sys.executable, "-m", "cortexd.ctl", *words],
        env=environment(run_dir),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S * 2,
        check=False,
    )


def environment(run_dir: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if "__" not in k}
    return {**kept, "CORTEX_RUN_DIR": str(run_dir), "NO_COLOR": "1"}


def until(found: object, what: str) -> None:
    """Poll the callable until it is true."""
    assert callable(found)
    end = time.monotonic() + DEADLINE_S
    while not found():
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(0.01)


def importing(module: str) -> Sequence[str]:
    """Names of all modules that a fresh interpreter has after `import module`."""
    code = f"import sys, {module}; print(*sys.modules)"
    return subprocess.check_output([sys.executable, "-c", code], text=True).split()
