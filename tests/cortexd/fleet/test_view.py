"""From records to what workers, operators and clients see."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cortexd import documents, facts
from cortexd.config import Catalogue, Profile
from cortexd.facts import Own
from cortexd.fleet.poller import NodeRecord
from cortexd.fleet.reading import STARTING, Reading, read, starting
from cortexd.fleet.view import snapshot_of
from cortexd.nodes.endpoint import Endpoint
from cortexd.router import Serve, decide
from cortexd.snapshot import Snapshot, Standing
from cortexd.standing import NodeStanding
from tests.cortexd.node_stub import model_fact

CATALOGUE = Catalogue((Profile("m", aliases=("gpt-4o",)), Profile("absent")))


def told(*models: dict[str, Any], state: str = "ready", running: int = 0) -> Reading:
    line = {"level": "warning", "code": "CX-X", "text": "hot", "next": "cool it"}
    health = {"state": state, "health": [line]}
    discovery = {
        "devices": [{"device": "cpu-0", "running": running, "waiting": 0}],
        "listen": {"metrics": "localhost:13132"},
    }
    bodies = [json.dumps(x).encode() for x in (health, {"models": models}, discovery)]
    return read(*bodies, etag='"b.1"', old=STARTING)


def record(
    name: str,
    reading: Reading | None,
    standing: Standing = "up",
    reason: str = "",
) -> NodeRecord:
    return NodeRecord(
        name, Endpoint(name, 1), NodeStanding(standing, 5.0), reading, 1.5, reason
    )


def seen(*records: NodeRecord, catalogue: Catalogue = CATALOGUE) -> Snapshot:
    return snapshot_of(records, catalogue, number=1, created_s=7.0)


def test_a_model_has_a_place_on_every_node_that_knows_it() -> None:
    a = told(model_fact("m"), running=4)
    b = told(model_fact("m", "loading", context=4096))

    known = seen(record("a", a), record("b", b))

    model = known.models["m"]
    assert [(p.node, p.status, p.load) for p in model.places] == [
        ("a", "loaded", 4),
        ("b", "loading", 0),
    ]
    assert model.context == 4096
    assert model.capabilities == ("chat",)
    assert known.aliases == {"gpt-4o": "m"}
    assert known.models["absent"].places == ()
    assert known.complete


@pytest.mark.parametrize(
    ("reading", "accepting", "has_told"),
    [
        (told(), True, True),
        (told(state="impaired"), True, True),
        (told(state="draining"), False, True),
        (told(state="stopping"), False, True),
        (starting(STARTING), True, False),
        (None, False, False),
    ],
)
def test_a_node_that_leaves_takes_no_more(
    reading: Reading | None, accepting: bool, has_told: bool
) -> None:
    node = seen(record("a", reading)).nodes["a"]

    assert (node.accepting, node.seen) == (accepting, has_told)


def test_not_knowing_whether_it_is_servable_counts_as_servable() -> None:
    fact = {"id": "m", "status": "loaded"}

    known = seen(record("a", told(fact)))

    assert isinstance(decide(known, "m"), Serve)


def test_it_is_complete_once_each_node_has_answered_or_been_given_up_on() -> None:
    up, waiting = record("a", told()), record("b", None, "unknown")

    assert not seen(up, waiting).complete
    assert seen(up, record("b", None, "down")).complete


# ---- what operators see -------------------------------------------------------------


def document(*records: NodeRecord, **own: Any) -> dict[str, Any]:
    fleet = facts.of_fleet(records, CATALOGUE, seen(*records))
    defaults = {"gateway": "gw", "started_s": 1.0, "time_s": 2.0}
    return facts.of_gateway(fleet, Own(**{**defaults, **own}))


def test_the_document_names_nodes_devices_and_models() -> None:
    whole = document(record("a", told(model_fact("m"))))

    assert whole["state"] == "ready"
    assert whole["devices"][0]["node"] == "a"
    models = {model["id"]: model for model in whole["models"]}
    (place,) = models["m"]["locations"]
    assert (place["node"], place["status"]) == ("a", "loaded")
    assert models["m"]["aliases"] == ["gpt-4o"]
    assert models["m"]["servable"] == {"ok": True, "reason": ""}
    assert models["absent"]["locations"] == []
    assert models["absent"]["servable"]["ok"] is False


def test_s40_a_node_that_says_localhost_is_shown_where_it_is() -> None:
    (node,) = document(record("gpu-01", told()))["nodes"]

    assert node["endpoint"] == "http://gpu-01:1"
    assert node["listen"] == {"metrics": "gpu-01:13132"}


def test_health_says_which_node_and_what_to_do() -> None:
    down = record("b", told(), "down", reason="no answer in 2 s")

    lines = document(record("a", told()), down)["health"]

    assert [line["level"] for line in lines] == ["warning", "error"]
    assert lines[0]["text"] == "node a: hot"
    assert lines[1]["text"] == "node b is down: no answer in 2 s"
    assert lines[1]["next"] == "cortexctl status"


def test_a_child_that_restarts_is_a_health_line() -> None:
    whole = document(record("a", told()), away=("metrics",))

    assert whole["state"] == "impaired"
    assert whole["health"][0]["text"] == "metrics restarts"


def test_before_the_fleet_has_spoken_the_gateway_starts() -> None:
    whole = facts.of_gateway({}, Own(gateway="gw", started_s=1.0, time_s=2.0))

    assert whole["state"] == "starting"
    assert whole["nodes"] == whole["devices"] == whole["models"] == []


def test_a_stop_is_said() -> None:
    assert document(record("a", told()), is_stopping=True)["state"] == "stopping"


# ---- what clients see ---------------------------------------------------------------


def test_s33_a_model_stays_listed_while_its_node_is_away() -> None:
    reading = told(model_fact("m"))
    up = documents.of(seen(record("a", reading)), "gw")
    down = documents.of(seen(record("a", reading, "down")), "gw")

    entry = json.loads(down.models["m"])
    assert up.models.keys() == down.models.keys() == {"m", "gpt-4o", "absent"}
    assert entry["loaded"] is False
    assert entry["locations"] == [{"node": "a", "status": "unreachable"}]
    assert entry["created"] == 7
    assert (up.is_healthy, down.is_healthy) == (True, False)
