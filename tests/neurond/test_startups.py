from __future__ import annotations

import pytest

from neurond.startups import STARTUPS, Retry, code_of, is_mismatch, of_nvml

INIT = "RuntimeError: Unexpected error from cudaGetDeviceCount(). Did you run some cuda"


@pytest.mark.parametrize(
    ("code", "retry"),
    [
        (3, Retry.NORMAL),
        (35, Retry.NEVER),
        (46, Retry.PATIENT),
        (100, Retry.NORMAL),
        (127, Retry.NORMAL),
        (802, Retry.PATIENT),
        (803, Retry.NEVER),
        (804, Retry.NEVER),
        (805, Retry.NORMAL),
    ],
)
def test_s39_each_start_up_code_says_whether_to_try_again(
    code: int, retry: Retry
) -> None:
    row = STARTUPS[code]
    assert row.retry is retry
    assert row.cure
    assert code_of(code, ()) == code
    for words in row.texts:
        assert code_of(None, [f"RuntimeError: {words.capitalize()}"]) == code


def test_these_are_all() -> None:
    assert {3, 35, 46, 100, 127, 802, 803, 804, 805} == set(STARTUPS)


@pytest.mark.parametrize(
    ("code", "chain", "expected"),
    [
        (-1, [f"{INIT} functions before? Error 803: system has unsupported"], 803),
        (-1, [f"{INIT} functions before? Error 802: system not yet initialized"], 802),
        (None, ["RuntimeError: The NVIDIA driver on your system is too old"], 35),
        (None, ["RuntimeError: No CUDA GPUs are available"], 100),
        (None, ["ValueError: odd", "CUDA error: system not yet initialized"], 802),
        (700, [f"{INIT} Error 803: no"], None),
        (-1, ["RuntimeError: CUDA error: an illegal memory access"], None),
        (-1, ["OSError: Error 404: not found"], None),
        (None, (), None),
    ],
)
def test_the_code_is_read_from_the_number_or_from_the_words(
    code: int | None, chain: list[str], expected: int | None
) -> None:
    assert code_of(code, chain) == expected


def test_s18_nvmls_complaint_of_a_mismatch_names_the_cure() -> None:
    complaint = "NVML could not be initialised: Driver/library version mismatch"
    assert is_mismatch(complaint)
    assert of_nvml(complaint).startswith(complaint)
    assert of_nvml(complaint).endswith("reboot the host")
    assert of_nvml("GPU 3: GPU is lost") == "GPU 3: GPU is lost"
    assert is_mismatch("RM has detected an NVML/RM version mismatch.")
