"""Messages and their codec: every kind round trips, and nonsense is MessageError."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc import messages
from ipc.codec import Codec
from ipc.messages import (
    MAX_MESSAGE_BYTES,
    Accepted,
    Cancel,
    Failed,
    Load,
    MessageError,
    Sampling,
    Stop,
    Submit,
    TokenRow,
    Tokens,
    decode,
    encode,
)

KINDS: list[type[Any]] = [
    cls
    for group in (
        messages.RingDown,
        messages.RingUp,
        messages.LinkDown,
        messages.LinkUp,
    )
    for cls in get_args(group)
]
INTEGERS = st.integers(-(2**63), 2**64 - 1)
TEXT = st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False) | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
    ),
    max_leaves=4,
)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a field's type."""
    if is_dataclass(hint):
        return objects_of(hint)  # type: ignore[arg-type]
    if get_origin(hint) is tuple:
        first, *more = get_args(hint)
        if more == [Ellipsis]:
            return st.lists(values_of(first), max_size=4).map(tuple)
        return st.tuples(values_of(first), *map(values_of, more))
    if get_origin(hint) is list:
        return st.lists(JSON, max_size=4)
    if get_origin(hint) is dict:
        return st.dictionaries(TEXT, JSON, max_size=4)
    plain: dict[Any, st.SearchStrategy[Any]] = {
        int: INTEGERS,
        float: st.floats(allow_nan=False),
        str: TEXT,
        bool: st.booleans(),
        bytes: st.binary(max_size=20),
    }
    return plain[hint]


def objects_of(cls: type[Any]) -> st.SearchStrategy[Any]:
    hints = get_type_hints(cls)
    return st.builds(cls, *[values_of(hints[field.name]) for field in fields(cls)])


def packed(*wire: Any) -> bytes:
    record: bytes = msgpack.packb(list(wire))
    return record


def unpacked(record: bytes) -> list[Any]:
    wire: list[Any] = msgpack.unpackb(record)
    return wire


@pytest.mark.parametrize("cls", KINDS, ids=lambda cls: cls.__name__)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_kind_comes_back_as_it_was_sent(cls: type[Any], data: Any) -> None:
    message = data.draw(objects_of(cls))
    record = encode(message)
    assert decode(record) == message
    assert decode(memoryview(record)) == message
    assert type(decode(record)) is cls


@pytest.mark.parametrize("cls", KINDS, ids=lambda cls: cls.__name__)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_fields_that_a_newer_peer_appended_are_ignored(
    cls: type[Any], data: Any
) -> None:
    message = data.draw(objects_of(cls))
    longer = [*unpacked(encode(message)), "new", {"field": 1}]
    assert decode(packed(*longer)) == message


def test_fields_appended_inside_a_message_are_ignored_too() -> None:
    row = [7, 0, [1, 2], [], [], "new", "fields"]
    expected = Tokens((TokenRow(7, 0, (1, 2)),))
    assert decode(packed(Tokens.kind, [row])) == expected


def test_fields_with_defaults_may_be_absent_at_the_end() -> None:
    assert decode(packed(Tokens.kind, [[7, 0, [1]]])) == Tokens((TokenRow(7, 0, (1,)),))
    wire = unpacked(encode(_submit()))
    assert decode(packed(*wire[:-4])) == _submit()
    with pytest.raises(MessageError, match="Submit: 14 fields of 15"):
        decode(packed(*wire[:-5]))


PROTOCOL = """
1 Submit id attempt model ids num_prompt choice seed sampling max_tokens stop_ids
    grammar principal priority deadline_s cache_salt slabs embed
    trial_group trial_until
2 Cancel id
16 Accepted id position cached
17 Progress id done total
18 Tokens rows
19 Finished id reason num_prompt num_emitted num_cached
20 Failed id error
21 SlabsFree slabs
22 PromptScores id start logprobs top
23 Vector id values
32 Attach worker generation sealed
33 Detach worker
34 Load model folder dtype quant context options known alone
35 Unload model
36 Stop
37 Convert source target may_dequantise
38 Inject fault at_step request times
48 Hello pid generation backend memory_total_bytes memory_free_bytes
49 LoadProgress model stage done total
50 Loaded model context resident_bytes seconds info
51 LoadFailed model error
52 Unloaded model memory_free_bytes
53 Fault fault_class type code chain model generation requests
54 Converted target size_bytes
- Sampling temperature top_p top_k min_p repetition_penalty presence_penalty
    frequency_penalty logit_bias min_tokens ignore_eos logprobs typical_p
    prompt_logprobs
- TokenRow id start ids logprobs top
"""


def test_kinds_and_positions_of_fields_never_change() -> None:
    """Append to a line of the table, and add lines; change nothing in it."""
    table = [
        " ".join([str(getattr(cls, "kind", "-")), cls.__name__, *names_of(cls)])
        for cls in (*KINDS, Sampling, TokenRow)
    ]
    assert " ".join(table) == " ".join(PROTOCOL.split())


def names_of(cls: type[Any]) -> list[str]:
    return [field.name for field in fields(cls)]


def test_positions_on_the_wire_are_the_order_of_the_fields() -> None:
    wire = unpacked(encode(_submit(logit_bias=((5, -1.0),))))
    bias = [1.0, 1.0, 0, 0.0, 1.0, 0.0, 0.0, [[5, -1.0]], 0, False, -1, 1.0, -1]
    head = [1, 42, 1, "m", [1, 2, 3], 3, 0, 9, bias]
    assert wire == [*head, 16, [2], "", "p", 0, 0.5, "", [], False, 0, 0]


def _submit(**sampling: Any) -> Submit:
    drawn = Sampling(**sampling)
    return Submit(
        42, 1, "m", (1, 2, 3), 3, 0, 9, drawn, 16, (2,), "", "p", 0, 0.5, "", ()
    )


# nonsense


@settings(max_examples=500)
@given(st.binary(max_size=80))
def test_random_bytes_are_refused_and_nothing_else_happens(record: bytes) -> None:
    _decode_or_refuse(record)


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from([cls.kind for cls in KINDS]) | JSON,
    wire=st.lists(JSON, max_size=18),
)
def test_well_formed_lists_of_anything_are_messages_or_refused(
    kind: Any, wire: list[Any]
) -> None:
    _decode_or_refuse(packed(kind, *wire))


@pytest.mark.parametrize("cls", KINDS, ids=lambda cls: cls.__name__)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_message_with_one_field_of_another_type_is_refused_or_still_typed(
    cls: type[Any], data: Any
) -> None:
    wire = unpacked(encode(data.draw(objects_of(cls))))
    index = data.draw(st.integers(0, len(wire) - 1))
    wire[index] = data.draw(JSON)
    _decode_or_refuse(packed(*wire))


@pytest.mark.parametrize("cls", KINDS, ids=lambda cls: cls.__name__)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_message_that_was_cut_or_damaged_is_refused_or_still_typed(
    cls: type[Any], data: Any
) -> None:
    record = bytearray(encode(data.draw(objects_of(cls))))
    with pytest.raises(MessageError):
        decode(bytes(record[:-1]))
    record[data.draw(st.integers(0, len(record) - 1))] ^= data.draw(st.integers(1, 255))
    _decode_or_refuse(bytes(record))


def _decode_or_refuse(record: bytes) -> None:
    """Whatever was decoded has the declared type in every field."""
    try:
        message = decode(record)
    except MessageError:
        return
    _assert_typed(message)


def _assert_typed(record: Any) -> None:
    hints = get_type_hints(type(record))
    for field in fields(record):
        _assert_value(getattr(record, field.name), hints[field.name])


def _assert_value(value: Any, hint: Any) -> None:
    if is_dataclass(hint):
        assert type(value) is hint
        _assert_typed(value)
    elif get_origin(hint) is tuple:
        assert type(value) is tuple
        items = get_args(hint)
        each = [items[0]] * len(value) if items[-1] is Ellipsis else items
        for item, item_hint in zip(value, each, strict=True):
            _assert_value(item, item_hint)
    elif hint is float:
        assert type(value) in (int, float)
    else:
        assert type(value) is (get_origin(hint) or hint)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (b"\xa1\xff", "not msgpack"),  # text that is not UTF-8
        (b"\x90" * 2, "not msgpack"),  # two values
        (b"\x91" * 3000 + b"\x01", "not msgpack"),  # deeper than any message
        (b"\xdd\xff\xff\xff\xff", "not msgpack"),  # four thousand million entries
        (packed(20, 1, msgpack.ExtType(5, b"x")), "not msgpack"),
        (b"\x90", "list with a kind"),
        (b"\x01", "list with a kind"),
        (msgpack.packb({"kind": 1}), "list with a kind"),
        (packed(0), "unknown kind 0"),
        (packed(99, 1), "unknown kind 99"),
        (packed(True, 1), "unknown kind True"),
        (packed(1.0, 1), "unknown kind 1.0"),
        (packed([1]), r"unknown kind \[1\]"),
        (packed(Cancel.kind), "Cancel: 0 fields of 1"),
        (packed(Cancel.kind, "7"), "Cancel.id is str"),
        (packed(Cancel.kind, True), "Cancel.id is bool"),
        (packed(Cancel.kind, None), "Cancel.id is NoneType"),
        (packed(Tokens.kind, {}), "Tokens.rows is dict"),
        (packed(Tokens.kind, [5]), "a list of"),
        (packed(Tokens.kind, [[1, 2]]), "TokenRow: 2 fields of 3"),
        (packed(Tokens.kind, [[1, 2, [True]]]), "a list of"),
        (packed(Tokens.kind, [[1, 2, [3.0]]]), "a list of"),
        (packed(Tokens.kind, [[1, 2, [3], ["x"]]]), "a list of"),
        (packed(Failed.kind, 1, {"code": 1}), "Failed.error is dict"),
        (packed(Failed.kind, 1, [b"bytes"]), "bytes inside"),
        (packed(Failed.kind, 1, [[msgpack.Timestamp(5)]]), "Timestamp inside"),
        (packed(Failed.kind, 1, [{b"key": 1}]), "a key is not text"),
        (packed(Load.kind, "m", "f", "d", "q", 0, []), "Load.options is list"),
    ],
)
def test_nonsense_is_refused_with_its_reason(record: bytes, reason: str) -> None:
    with pytest.raises(MessageError, match=reason):
        decode(record)


@pytest.mark.parametrize(
    ("bias", "reason"),
    [
        ([[1, 2.0, 3]], "3 entries, expected 2"),
        ([[1]], "1 entries, expected 2"),
        ([["1", 2.0]], "an entry is str"),
        ([[1, None]], "an entry is NoneType"),
        ([7], "a list of"),
    ],
)
def test_pairs_inside_a_message_are_checked(bias: Any, reason: str) -> None:
    wire = unpacked(encode(_submit()))
    wire[8][7] = bias
    with pytest.raises(MessageError, match=reason):
        decode(packed(*wire))


def test_a_record_over_the_limit_is_not_even_looked_at() -> None:
    with pytest.raises(MessageError, match="is over"):
        decode(bytes(MAX_MESSAGE_BYTES + 1))


def test_a_shape_once_seen_does_not_excuse_the_next_record() -> None:
    assert decode(packed(Accepted.kind, 1, 2, 3)) == Accepted(1, 2, 3)
    for wire in ([1, 2, "3"], [1, 2], ["1", 2, 3]):
        with pytest.raises(MessageError):
            decode(packed(Accepted.kind, *wire))


def test_a_kind_without_fields_is_its_kind_alone() -> None:
    assert encode(Stop()) == b"\x91\x24"
    assert decode(b"\x91\x24") == Stop()


def test_every_field_with_a_default_stands_at_the_end() -> None:
    for cls in KINDS:
        defaults = [field.default is not MISSING for field in fields(cls)]
        assert defaults == sorted(defaults)


def test_one_dataclass_in_two_messages_has_one_layout() -> None:
    @dataclass(frozen=True)
    class Left:
        kind: ClassVar[int] = 1
        row: TokenRow

    @dataclass(frozen=True)
    class Right:
        kind: ClassVar[int] = 2
        rows: tuple[TokenRow, ...]

    row = TokenRow(1, 0, (2,))
    codec = Codec([_resolved(Left, TokenRow), _resolved(Right, tuple[TokenRow, ...])])
    assert codec.decode(codec.encode(Left(row))) == Left(row)
    assert codec.decode(codec.encode(Right((row, row)))) == Right((row, row))


def _resolved(cls: type[Any], hint: Any) -> type[Any]:
    """A class made inside a test: its annotations can't be looked up by name."""
    (field,) = fields(cls)
    cls.__annotations__ = {"kind": ClassVar[int], field.name: hint}
    return cls
