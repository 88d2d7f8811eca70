"""Frames: whatever the pieces, the same maps; and never more than one frame's bytes."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.frames import MAX_FRAME_BYTES, FrameError, FrameReader, pack_frame

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
_MAPS = st.dictionaries(st.text(), _VALUES, max_size=5)


@settings(max_examples=60)
@given(st.lists(_MAPS, max_size=4), st.lists(st.integers(1, 40)))
def test_frames_cut_anywhere_are_the_maps_that_were_packed(
    maps: list[dict[str, Any]], sizes: list[int]
) -> None:
    stream = b"".join(map(pack_frame, maps))
    reader = FrameReader()
    found = []
    for size in [*sizes, len(stream)]:
        found += reader.feed(stream[:size])
        stream = stream[size:]
    assert found == maps
    assert not reader.pending


@given(st.binary(max_size=200))
def test_any_bytes_are_maps_or_refused(stream: bytes) -> None:
    reader = FrameReader()
    try:
        assert all(type(frame) is dict for frame in reader.feed(stream))
    except FrameError:
        pass


@given(st.binary(max_size=100))
def test_any_body_is_a_map_or_refused(body: bytes) -> None:
    reader = FrameReader()
    try:
        (frame,) = reader.feed(struct.pack(">I", len(body)) + body)
        assert type(frame) is dict
    except FrameError:
        pass


def test_half_a_frame_is_pending_and_gives_nothing() -> None:
    reader = FrameReader()
    frame = pack_frame({"a": 1})
    for end in range(1, len(frame)):
        assert reader.feed(frame[end - 1 : end]) == []
        assert reader.pending
    assert reader.feed(frame[-1:]) == [{"a": 1}]


def test_a_frame_of_the_largest_size_passes_and_one_byte_more_does_not() -> None:
    room = MAX_FRAME_BYTES - len(msgpack.packb({"a": b""})) - 3  # longer length field
    frame = pack_frame({"a": bytes(room)})
    assert len(frame) == MAX_FRAME_BYTES + 4
    assert FrameReader().feed(frame) == [{"a": bytes(room)}]
    with pytest.raises(FrameError, match="allowed"):
        pack_frame({"a": bytes(room + 1)})


def test_an_oversize_frame_is_refused_by_its_length_alone() -> None:
    with pytest.raises(FrameError, match="allowed"):
        FrameReader().feed(struct.pack(">I", MAX_FRAME_BYTES + 1))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x90",
        b"\x01",
        b"\x81\xa1a",
        b"\x80\x80",
        b"\x81\x01\x02",
        b"\x81\xa1a\xd4\x05x",
        b"\x81\x90\x01",
        b"\x91" * 5000,
    ],
)
def test_a_body_that_is_not_one_map_with_text_keys_is_refused(body: bytes) -> None:
    with pytest.raises(FrameError):
        FrameReader().feed(struct.pack(">I", len(body)) + body)


def test_a_file_name_that_is_no_utf8_travels_as_it_is() -> None:
    name = b"/models/\xff\xfe".decode(errors="surrogateescape")
    assert FrameReader().feed(pack_frame({"folder": name})) == [{"folder": name}]
