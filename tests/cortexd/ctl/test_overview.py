"""What a node and a gateway answer becomes one picture."""

from __future__ import annotations

import pytest

from cortexd.ctl import overview as o
from tests.cortexd.ctl.facts import Facts, device, gateway, model, node


def _fleet() -> Facts:
    """A gateway that faces this host's node and another one."""
    facts = gateway()
    facts["nodes"].append({"name": "far", "endpoint": "http://10.0.0.2:13131"})
    facts["devices"].append({**device("gpu-0"), "node": "far"})
    facts["models"][0]["locations"].append({"node": "far", "status": "loading"})
    facts["models"].append({"id": "other", "locations": []})
    return facts


def test_a_node_alone_is_the_whole_picture() -> None:
    overview = o.Overview(node=node())

    assert [row["node"] for row in o.devices(overview)] == ["box-a"]
    assert [row["id"] for row in o.models(overview)] == ["smollm2-135m-instruct"]
    assert o.is_ready(overview)


def test_this_hosts_devices_are_believed_from_the_node_and_stand_once() -> None:
    own = node(devices=[device(generation=7)])

    rows = o.devices(o.Overview(node=own, gateway=_fleet()))

    found = [(row["node"], row["device"], row["generation"]) for row in rows]
    assert found == [("local", "cpu-0", 7), ("far", "gpu-0", 1)]


def test_models_have_a_row_per_node_and_one_without_any() -> None:
    rows = o.models(o.Overview(node=node(), gateway=_fleet()))

    found = [(row["id"], row["node"], row["status"]) for row in rows]
    assert found == [
        ("smollm2-135m-instruct", "local", "loaded"),
        ("smollm2-135m-instruct", "far", "loading"),
        ("other", "", "unloaded"),
    ]


def test_a_node_that_the_gateway_does_not_know_keeps_its_own_name() -> None:
    far = gateway(nodes=[{"name": "far", "endpoint": "http://10.0.0.2:13131"}])

    assert o.local_name(o.Overview(node=node(), gateway=far)) == "box-a"


@pytest.mark.parametrize(
    ("endpoint", "name"),
    [
        ("http://[::1]:13131", "known"),
        ("http://localhost:13131/", "known"),
        ("http://box-a:13131", "known"),
        ("http://localhost:13139", "box-a"),
        ("nonsense", "box-a"),
    ],
)
def test_this_hosts_node_is_known_by_its_port(endpoint: str, name: str) -> None:
    facts = gateway(nodes=[{"name": "known", "endpoint": endpoint}])

    assert o.local_name(o.Overview(node=node(), gateway=facts)) == name


def test_a_gateway_alone_shows_its_fleet() -> None:
    overview = o.Overview(gateway=_fleet())

    assert len(o.devices(overview)) == 2
    assert [row["node"] for row in o.models(overview)] == ["local", "far", ""]


def test_errors_come_first_and_each_line_once() -> None:
    warning = {"level": "warning", "code": "CX-A", "text": "a"}
    error = {"level": "error", "code": "CX-B", "text": "b"}
    overview = o.Overview(
        node=node(health=[warning, error]), gateway=gateway(health=[warning])
    )

    assert [line["code"] for line in o.health(overview)] == ["CX-B", "CX-A"]


def test_a_warning_is_ready_and_an_error_or_another_state_is_not() -> None:
    def ready(**changes: object) -> bool:
        return o.is_ready(o.Overview(node=node(**changes), gateway=gateway()))

    assert ready(health=[{"level": "warning", "code": "CX-A", "text": "a"}])
    assert not ready(health=[{"level": "error", "code": "CX-A", "text": "a"}])
    assert not ready(state="impaired")


def test_the_document_holds_both_answers_whole() -> None:
    overview = o.Overview(node=node(models=[model(status="failed")]))

    document = o.document(overview)

    assert document["schema"] == 1
    assert document["node"] is overview.node
    assert document["gateway"] is None
    assert document["ready"] is True
