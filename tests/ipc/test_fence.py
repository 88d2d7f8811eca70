"""Memory barriers: real calls to membarrier, and what happens where there are none."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ipc import fence


def test_this_kernel_registers_and_runs_barriers() -> None:
    assert fence.register()
    assert fence.barrier()


def test_a_forked_child_needs_no_new_registration_for_its_own_barriers() -> None:
    fence.register()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if fence.barrier() else 1)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize(
    ("architecture", "strong"), [("x86_64", True), ("aarch64", False)]
)
def test_the_order_of_known_machines_is_known(architecture: str, strong: bool) -> None:
    assert fence.machine(architecture).strong is strong


def test_an_unknown_machine_is_refused_by_name() -> None:
    with pytest.raises(fence.UnsupportedMachine, match="'riscv64'"):
        fence.machine("riscv64")


def _refused() -> bool:
    return False


def test_a_strong_machine_without_barriers_is_unfenced() -> None:
    assert fence.Machine(strong=True).fenced()
    assert not fence.Machine(strong=True, barrier=_refused).fenced()
    assert not fence.Machine(strong=True, register=_refused).fenced()


def test_a_weak_machine_without_barriers_is_refused() -> None:
    assert fence.Machine(strong=False).fenced()
    with pytest.raises(fence.UnsupportedMachine, match="weak"):
        fence.Machine(strong=False, barrier=_refused).fenced()


_SECCOMP = """
import ctypes, struct
from ipc import fence
# BPF: load the call number; membarrier -> EPERM, anything else -> allow
code = [(0x20, 0, 0, 0), (0x15, 0, 1, fence._CALL_NUMBER),
        (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *c) for c in code))
head = struct.pack("@HxxxxxxP", len(code), ctypes.addressof(program))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0   # no_new_privs
assert libc.prctl(22, 2, head, 0, 0) == 0  # seccomp filter
print(fence.register(), fence.barrier(), fence.machine().fenced())
"""


def test_a_sandbox_that_forbids_membarrier_is_noticed() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", _SECCOMP],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    if "AssertionError" in answer.stderr:
        pytest.skip("no seccomp filters here")
    assert answer.stdout.split() == ["False", "False", "False"], answer.stderr
