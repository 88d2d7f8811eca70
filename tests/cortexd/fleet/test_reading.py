"""What nodes say, of any version and mood."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortexd.fleet.reading import STARTING, BadAnswer, Reading, read, starting
from tests.cortexd.node_stub import model_fact

HEALTH = {"state": "ready", "health": [], "models": []}
DISCOVERY = {
    "devices": [{"device": "cpu-0", "running": 2, "waiting": 3}],
    "version": {"cortex": "9"},
    "listen": {"http": "127.0.0.1:13131"},
}


def encoded(document: Any) -> bytes:
    return json.dumps(document).encode()


def reading(
    *models: dict[str, Any],
    health: dict[str, Any] = HEALTH,
    discovery: dict[str, Any] = DISCOVERY,
    old: Reading = STARTING,
) -> Reading:
    body = encoded({"models": models})
    return read(encoded(health), body, encoded(discovery), etag='"b.1"', old=old)


def test_a_reading_has_what_the_node_said() -> None:
    fact = model_fact("m", colour="red")

    got = reading(fact)

    assert got.told
    assert (got.state, got.etag) == ("ready", '"b.1"')
    assert got.models == (fact,)
    assert got.routes[0].status == "loaded"
    assert got.loads == {"cpu-0": 5}
    assert got.version == {"cortex": "9"}


def test_health_freshens_what_a_304_leaves_old() -> None:
    old = reading(model_fact("m", "loading", percent=10), model_fact("n"))
    row = {"id": "m", "status": "loading", "percent": 60, "servable": {"ok": False}}

    got = read(
        encoded({**HEALTH, "models": [row]}),
        None,
        encoded(DISCOVERY),
        etag=old.etag,
        old=old,
    )

    assert [fact["percent"] for fact in got.models] == [60, 100]
    assert got.routes[0].percent == 60
    assert got.routes[0].servable is not None
    assert got.routes[0].servable.ok is False
    assert got.routes[0].context == 8192


def test_a_node_that_starts_again_keeps_its_models_known() -> None:
    old = reading(model_fact("m"))

    new = starting(old)

    assert new.state == "starting"
    assert new.routes == old.routes
    assert new.etag == ""
    assert not starting(STARTING).told


def test_an_older_node_may_leave_out_what_it_does_not_know() -> None:
    got = reading({"id": "m", "status": "loaded"}, discovery={})

    assert got.routes[0].servable is None
    assert got.loads == {}


@pytest.mark.parametrize(
    ("model", "health", "discovery"),
    [
        ({"status": "loaded"}, HEALTH, DISCOVERY),
        ({"id": 7, "status": "loaded"}, HEALTH, DISCOVERY),
        (model_fact("m", percent="half"), HEALTH, DISCOVERY),
        (model_fact("m", servable="yes"), HEALTH, DISCOVERY),
        (model_fact("m"), {"error": {}}, DISCOVERY),
        (model_fact("m"), {"state": 1}, DISCOVERY),
        (model_fact("m"), HEALTH, {"devices": {}}),
        (model_fact("m"), HEALTH, {"devices": [{"running": 1}]}),
    ],
)
def test_what_we_route_by_has_its_type_or_the_poll_is_missed(
    model: dict[str, Any], health: dict[str, Any], discovery: dict[str, Any]
) -> None:
    with pytest.raises(BadAnswer):
        reading(model, health=health, discovery=discovery)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "state", "models", "devices", "status"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(st.binary(max_size=30) | JSON.map(encoded), JSON.map(encoded), JSON.map(encoded))
def test_nonsense_is_a_missed_poll_and_nothing_else(
    health: bytes, models: bytes, discovery: bytes
) -> None:
    try:
        read(health, models, discovery, etag="", old=STARTING)
    except BadAnswer:
        pass
