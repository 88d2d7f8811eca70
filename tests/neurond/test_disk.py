"""Reading the disk without waiting for it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from neurond import disk

_HUNG = """
import asyncio, sys
from neurond import disk
async def main():
    try:
        await asyncio.wait_for(disk.read(lambda: open(sys.argv[1]).read()), 0.2)
    except TimeoutError:
        print("in time")
asyncio.run(main())
"""


def test_what_the_call_returns_or_raises_comes_back() -> None:
    assert asyncio.run(disk.read(lambda: 7)) == 7
    with pytest.raises(FileNotFoundError):
        asyncio.run(disk.read(lambda: Path("/nowhere/x").read_text()))


def test_s13_a_file_system_that_hangs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """A FIFO without a writer blocks its reader, as a dead mount does."""
    os.mkfifo(tmp_path / "hung")
    done = subprocess.run(
        [sys.executable, "-c", _HUNG, str(tmp_path / "hung")],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert done.stdout == "in time\n"
