"""Whose fault an exception is, and what is told about it.

Device process, torch-free. A typed ServiceError knows; anything else is judged by the
types, codes and texts of its whole cause chain (S05), in `neurond.faults`. What those
don't settle, the probe does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ipc.errors import HostError, ServiceError, cause_chain, error_for
from ipc.messages import Fault
from neurond import faults

_KIND_CLASSES = {"device": "device", "capacity": "capacity", "client": "client"}
FATAL_CLASSES = faults.FATAL


class DeviceDied(Exception):
    """The process must end; `fault` says why. Only the worker's border catches it."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.chain[0] if fault.chain else fault.type)
        self.fault = fault


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, outermost first."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def error_code(error: BaseException) -> int | None:
    """The first CUDA error number in the chain. Raised from Python it has none."""
    codes = (getattr(link, "error_code", None) for link in causes(error))
    return next((code for code in codes if isinstance(code, int)), None)


def type_names(error: BaseException) -> tuple[str, ...]:
    """Class names, with those of the base classes, of the whole chain."""
    return tuple(
        cls.__name__ for link in causes(error) for cls in type(link).__mro__[:-2]
    )


def fault_class(error: BaseException) -> str:
    """A class of `neurond.faults`: client, capacity, host, device, group, peer."""
    if isinstance(error, ServiceError):
        return _KIND_CLASSES.get(error.row.kind, "host")
    judged = faults.judge(type_names(error), error_code(error), cause_chain(error))
    if judged.evidence == "default":
        return "host"  # until the probe says otherwise
    return judged.fault_class.value


def nan_error() -> ServiceError:
    """For one row; the others of its step are sound."""
    return error_for("nan_logits", "the model computed NaN for this request")


def as_service_error(error: BaseException) -> ServiceError:
    """What the client is told; the cause stays in the chain, for the journal."""
    if isinstance(error, ServiceError):
        return error
    chain = cause_chain(error)
    if fault_class(error) == "capacity":
        message = "the device ran out of memory for this request"
        return error_for("insufficient_vram", message, chain=chain)
    return HostError("the model could not compute this request", chain=chain)


def died(
    error: BaseException, *, model: str, generation: int, requests: Sequence[int]
) -> DeviceDied:
    """The last words about a fatal error."""
    code = error_code(error)
    fault = Fault(
        fault_class="group" if fault_class(error) == "group" else "device",
        type=type(error).__name__,
        code=-1 if code is None else code,
        chain=cause_chain(error),
        model=model,
        generation=generation,
        requests=tuple(requests),
    )
    return DeviceDied(fault)
