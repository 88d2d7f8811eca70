"""What every test shares: a session that leaves nothing behind.

Every process started by a test inherits CORTEX_TEST_SESSION; when the session ends,
none may live, and /dev/shm must be as it was. Processes of pytest-xdist inherit it too;
they have ended by then, and the one that started them looks.
"""

from __future__ import annotations

import gc
import os
import secrets
import signal
import sys
import time
from pathlib import Path

import hypothesis
import pytest

SESSION = os.environ.setdefault("CORTEX_TEST_SESSION", secrets.token_hex(8))
# a title is written over the environment otherwise, and the mark with it
os.environ["SPT_NOENV"] = "1"
# a shell without job control has what it runs in the background ignore SIGINT, and
# children would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)
_SHM_BEFORE = set(os.listdir("/dev/shm"))
_GRACE_S = 5.0
# A host that is busy is no finding; the timeout of a test bounds its examples too.
hypothesis.settings.register_profile(
    "patient",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("patient")


def _session_processes() -> list[str]:
    """Title of every other process that carries the mark of this run."""
    mark = f"CORTEX_TEST_SESSION={SESSION}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                found.append(f"{entry.name} {title.decode(errors='replace')}")
        except OSError:
            continue  # it ended, or is a zombie whose parent is about to reap it
    return found


def _until_gone(deadline_s: float) -> list[str]:
    end = time.monotonic() + deadline_s
    while (left := _session_processes()) and time.monotonic() < end:
        time.sleep(0.05)
    return left


@pytest.hookimpl(trylast=True)  # xdist ends its processes in this hook
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the whole run when a process or a shared-memory name is left."""
    if "neurond.grammar" in sys.modules:  # its compilers stay as long as the process
        sys.modules["neurond.grammar"].COMPILERS.close()
    if hasattr(session.config, "workerinput"):
        return
    left = _until_gone(_GRACE_S)
    names = set(os.listdir("/dev/shm")) - _SHM_BEFORE
    if left or names:
        print("\nleft behind:", *left, *sorted(names), sep="\n  ")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU tests skip where there is no GPU device node."""
    if Path("/dev/nvidiactl").exists():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this host"))


def pytest_collection_finish() -> None:
    """Spare every later `gc.collect` of a test the half million objects of torch,
    transformers and the collected tests: half a second each."""
    gc.collect()
    gc.freeze()
