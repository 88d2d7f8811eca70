from __future__ import annotations

import pytest

from ipc.errors import CapacityError, DeviceFault, HostError, error_for
from neurond.device.standins import AcceleratorError, OutOfMemoryError
from neurond.device.verdict import as_service_error, died, error_code, fault_class


def wrapped(cause: Exception) -> Exception:
    """The cause, three frames up, as a plain RuntimeError."""
    try:
        try:
            raise cause
        except Exception as error:
            raise ValueError("while computing attention") from error
    except ValueError as error:
        outer = RuntimeError("step failed")
        outer.__context__ = error
        return outer


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (AcceleratorError("CUDA error: unspecified launch failure", 719), "device"),
        (AcceleratorError("CUDA error: device-side assert triggered", 710), "device"),
        (OutOfMemoryError("CUDA out of memory."), "capacity"),
        (MemoryError(), "capacity"),
        (RuntimeError("The size of tensor a (1) must match"), "host"),
        (error_for("nan_logits", "NaN"), "host"),
        (DeviceFault("gone"), "device"),
        (error_for("invalid_request_error", "bad"), "client"),
    ],
)
def test_the_class_survives_any_wrapping_s05(error: Exception, expected: str) -> None:
    assert fault_class(error) == expected
    if not hasattr(error, "row"):
        assert fault_class(wrapped(error)) == expected


def test_the_code_is_found_in_the_chain() -> None:
    assert error_code(wrapped(AcceleratorError("x", 719))) == 719
    assert error_code(ValueError()) is None


def test_the_client_learns_no_internals_and_the_journal_all() -> None:
    error = as_service_error(wrapped(ValueError("tensor at /secret")))
    assert isinstance(error, HostError)
    assert "secret" not in error.message
    assert error.chain[0] == "RuntimeError: step failed"
    assert error.chain[-1] == "ValueError: tensor at /secret"


def test_out_of_memory_is_a_matter_of_capacity() -> None:
    error = as_service_error(OutOfMemoryError("CUDA out of memory."))
    assert isinstance(error, CapacityError)
    assert error.status == 503


def test_last_words_carry_type_code_chain_and_requests() -> None:
    error = wrapped(AcceleratorError("CUDA error: an illegal memory access", 700))
    fault = died(error, model="m", generation=4, requests=[1, 2]).fault
    assert (fault.fault_class, fault.code, fault.generation) == ("device", 700, 4)
    assert fault.requests == (1, 2)
    assert fault.chain[-1] == "AcceleratorError: CUDA error: an illegal memory access"
