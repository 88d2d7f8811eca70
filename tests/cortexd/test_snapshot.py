"""Snapshots travel between processes and stay what they were."""

from __future__ import annotations

import dataclasses

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortexd import snapshot
from cortexd.snapshot import EMPTY, ModelView, NodeView, Place, Snapshot

NAMES = st.text(min_size=1, max_size=6)
PLACES = st.builds(
    Place,
    node=NAMES,
    status=NAMES,
    servable=st.booleans(),
    reason=NAMES,
    percent=st.none() | st.floats(0, 100),
    eta_s=st.none() | st.floats(0, 100),
    load=st.integers(0, 9),
)
MODELS = st.builds(
    ModelView,
    id=NAMES,
    places=st.lists(PLACES, max_size=3).map(tuple),
    aliases=st.lists(NAMES, max_size=2).map(tuple),
    context=st.none() | st.integers(1, 9),
    capabilities=st.lists(NAMES, max_size=2).map(tuple),
)
NODES = st.builds(
    NodeView,
    name=NAMES,
    endpoint=NAMES,
    standing=st.sampled_from(["up", "down", "unknown"]),
    accepting=st.booleans(),
    seen=st.booleans(),
)
SNAPSHOTS = st.builds(
    snapshot.of,
    number=st.integers(0, 9),
    complete=st.booleans(),
    created_s=st.floats(0, 9),
    nodes=st.lists(NODES, max_size=3, unique_by=lambda n: n.name),
    models=st.lists(MODELS, max_size=3, unique_by=lambda m: m.id),
)


@given(SNAPSHOTS)
def test_a_snapshot_comes_out_of_a_message_as_it_went_in(known: Snapshot) -> None:
    message = msgpack.unpackb(msgpack.packb(known.plain()))

    assert snapshot.parse(message) == known


def test_fields_of_a_newer_fleet_are_dropped() -> None:
    known = snapshot.of(
        number=1,
        complete=True,
        created_s=0,
        nodes=[NodeView("a", "http://a:1")],
        models=[ModelView("m", (Place("a", "loaded"),))],
    )
    plain = known.plain()
    plain["nodes"][0]["colour"] = "red"
    plain["models"][0]["smell"] = "sweet"
    plain["models"][0]["places"] = [{**plain["models"][0]["places"][0], "mood": 1}]

    assert snapshot.parse(plain) == known


def test_a_snapshot_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EMPTY.number = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        EMPTY.models["m"] = ModelView("m")  # type: ignore[index]
