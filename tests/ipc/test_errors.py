"""The error table, and errors that cross process borders."""

from __future__ import annotations

import msgpack
import pytest

from ipc import errors
from ipc.errors import TABLE, ErrorRow, ServiceError, cause_chain, error_for, from_wire

ROWS = sorted(TABLE.values(), key=lambda row: row.code)
each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.code)


def through_a_border(error: ServiceError) -> ServiceError:
    return from_wire(msgpack.unpackb(msgpack.packb(error.to_wire())))


def test_every_code_and_every_ref_is_unique() -> None:
    assert len({row.code for row in errors._ROWS}) == len(errors._ROWS)
    assert len({row.ref for row in errors._ROWS}) == len(errors._ROWS)


@each_row
def test_a_clients_mistake_is_a_4xx_and_nobody_elses_is_a_4xx_but_429(
    row: ErrorRow,
) -> None:
    if row.kind == "client":
        assert 400 <= row.status < 500
    else:
        assert row.status == 429 or 500 <= row.status < 600


@each_row
def test_429_and_503_carry_retry_after_and_others_do_not(row: ErrorRow) -> None:
    assert (row.retry_after_s is not None) == (row.status in (429, 503))
    assert row.retry_after_s is None or row.retry_after_s >= 1


@each_row
def test_every_row_says_the_cause_and_the_next_command(row: ErrorRow) -> None:
    assert row.ref.startswith("CX-")
    assert row.cause
    assert row.next_command.startswith(("cortexctl ", "journalctl "))
    for useless in ("see above", "see log", "see the log", "root cause"):
        assert useless not in row.cause.lower()


@each_row
def test_dialect_types_follow_the_status(row: ErrorRow) -> None:
    expected = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        500: "api_error",
        502: "api_error",
        503: "overloaded_error",
    }
    assert row.anthropic_type == expected.get(row.status, "invalid_request_error")


@each_row
def test_s05_every_error_keeps_type_code_fields_and_chain_across_a_border(
    row: ErrorRow,
) -> None:
    error = error_for(
        row.code,
        "what happened",
        param="max_tokens",
        retry_after_s=7,
        fields={"prompt_len": 3},
        chain=("RuntimeError: a", "ValueError: b"),
    )
    arrived = through_a_border(error)
    assert type(arrived) is type(error)
    assert arrived.status == row.status
    assert (arrived.code, arrived.message, str(arrived)) == (
        row.code,
        "what happened",
        "what happened",
    )
    assert (arrived.param, arrived.retry_after_s) == ("max_tokens", 7)
    assert arrived.fields == {"prompt_len": 3}
    assert arrived.chain == ("RuntimeError: a", "ValueError: b")
    assert arrived.to_wire() == error.to_wire()


def test_the_class_of_an_error_is_who_must_act() -> None:
    assert type(error_for("invalid_json", "x")) is errors.ClientError
    assert type(error_for("queue_full", "x")) is errors.CapacityError
    assert type(error_for("load_failed", "x")) is errors.HostError
    assert type(error_for("device_failed", "x")) is errors.DeviceFault
    assert type(error_for("no_healthy_node", "x")) is errors.PeerLost


@pytest.mark.parametrize(
    "cls",
    [
        *(errors.ClientError, errors.CapacityError, errors.HostError),
        *(errors.DeviceFault, errors.PeerLost, ServiceError),
    ],
)
def test_an_error_without_a_code_has_the_default_of_its_class(
    cls: type[ServiceError],
) -> None:
    error = cls("x")
    assert error.code == cls.default_code
    arrived = through_a_border(error)
    assert arrived.code == error.code
    assert cls is ServiceError or type(arrived) is cls


def test_s05_the_causes_of_a_raised_error_travel_when_no_chain_was_given() -> None:
    with pytest.raises(ServiceError) as raised:
        _raise_wrapped()
    arrived = through_a_border(raised.value)
    assert arrived.chain == ("RuntimeError: step failed", "KeyError: 'handle'")


def _raise_wrapped() -> None:
    try:
        try:
            raise KeyError("handle")
        except KeyError as inner:
            raise RuntimeError("step failed") from inner
    except RuntimeError as error:
        raise errors.DeviceFault("the device died") from error


def test_retry_after_of_the_row_holds_unless_one_is_given() -> None:
    assert error_for("model_loading", "x").retry_after_s == 2
    assert through_a_border(error_for("model_loading", "x")).retry_after_s == 2
    assert error_for("model_loading", "x", retry_after_s=0.5).retry_after_s == 0.5
    assert error_for("model_loading", "x", retry_after_s=0).retry_after_s == 0
    assert error_for("invalid_json", "x").retry_after_s is None


def test_a_code_from_a_newer_peer_becomes_internal_error() -> None:
    error = from_wire(["of_next_year", "text", None, None, {}, ["E: x"]])
    assert (error.code, error.message, error.chain) == (
        "internal_error",
        "text",
        ("E: x",),
    )


def _raise_from_a_cause() -> None:
    try:
        raise ValueError("context")
    except ValueError:
        raise TypeError("outer") from OSError("cause")


def _raise_in_a_handler() -> None:
    try:
        raise ValueError("first")
    except ValueError:
        raise TypeError("second")  # noqa: B904  the very case


def test_the_chain_follows_cause_before_context() -> None:
    with pytest.raises(TypeError) as raised:
        _raise_from_a_cause()
    assert cause_chain(raised.value) == ("TypeError: outer", "OSError: cause")


def test_the_chain_follows_context_where_there_is_no_cause() -> None:
    with pytest.raises(TypeError) as raised:
        _raise_in_a_handler()
    assert cause_chain(raised.value) == ("TypeError: second", "ValueError: first")


def test_a_chain_that_bites_its_tail_ends() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert cause_chain(one) == ("ValueError: one", "ValueError: two")


def test_a_chain_is_bounded_in_length_and_width() -> None:
    error = ValueError("innermost")
    for _ in range(100):
        outer = ValueError("x" * 100_000)
        outer.__cause__ = error
        error = outer
    chain = cause_chain(error)
    assert len(chain) == 16
    assert all(len(link) <= 2000 for link in chain)
