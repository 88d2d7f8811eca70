"""The verbs fault and drill, as a process against a real node on the fake device."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cortexd.ctl.drill import LASTING, Round, is_bad
from cortexd.ctl.drillclient import Told, requests, told_by
from cortexd.ctl.exits import Exit
from neurond.device.injection import KINDS
from tests.cortexd.ctl.running import cortexctl, stand_in
from tests.harness import Node

DEVICE = "fake-0"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    config = {"faults": {"injection": True}, "engine": {"numerics": "invariant"}}
    folder = tmp_path_factory.mktemp("node")
    with Node(folder, config=config, options={"step_ms": 2}) as started:
        yield started


def test_fault_list_names_all_that_the_node_can_simulate(node: Node) -> None:
    run = cortexctl(node.folder, "fault", "list")
    assert run.returncode == Exit.DONE, run.stderr
    named = [line.split(" ")[0] for line in run.stdout.splitlines()]
    assert {*KINDS, "xid:N"} <= set(named)
    assert "phases of a device: boot context idle" in run.stdout
    listed = json.loads(cortexctl(node.folder, "fault", "list", "--json").stdout)
    assert listed == node.control("faults")


def test_fault_inject_orders_what_it_is_told(node: Node) -> None:
    before = node.device(DEVICE)["generation"]
    run = cortexctl(node.folder, "fault", "inject", DEVICE, "abort", "--at-step", "0")
    assert run.returncode == Exit.DONE, run.stderr
    assert run.stdout == f"abort is ordered for {DEVICE}, generation {before}\n"
    node.wait(lambda: node.device(DEVICE)["generation"] > before, "it lives on")
    node.wait_ready()


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["inject", DEVICE], Exit.USAGE, "wants a device and a kind"),
        (["inject", DEVICE, "flood"], Exit.FAILED, "'flood' can't be simulated"),
        (["inject", "gpu-9", "nan"], Exit.FAILED, "there is no device gpu-9"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(
    node: Node, words: list[str], code: Exit, told: str
) -> None:
    run = cortexctl(node.folder, "fault", *words)
    assert run.returncode == code
    assert told in run.stderr


def test_a_drill_kills_a_live_device_and_every_stream_comes_whole(node: Node) -> None:
    kinds = "slow,device_assert,wrong_result"
    run = cortexctl(node.folder, "drill", "--kinds", kinds, "--json")
    assert run.returncode == Exit.DONE, run.stdout + run.stderr
    rounds = json.loads(run.stdout)["rounds"]
    assert [one["kind"] for one in rounds] == kinds.split(",")
    assert [(one["whole"], one["equal"]) for one in rounds] == [(4, 4)] * 3
    assert all(one["recovery"]["respawn_s"] > 0 for one in rounds[1:])


def test_a_drill_is_a_table_for_people(node: Node) -> None:
    run = cortexctl(node.folder, "drill", "--kinds", "sigkill", "--streams", "2")
    title, row = run.stdout.splitlines()
    assert title.split()[:4] == ["FAULT", "WHOLE", "EQUAL", "DETECT"]
    assert row.split()[:3] == ["sigkill", "2/2", "2/2"]


def test_a_drill_has_no_kind_that_costs_a_request(node: Node) -> None:
    run = cortexctl(node.folder, "drill", "--kinds", "nan")
    assert run.returncode == Exit.USAGE
    assert "it would cost a request" in run.stderr


def test_nothing_is_simulated_where_it_is_not_allowed(tmp_path: Path) -> None:
    with stand_in(tmp_path, "node"):
        for words in (["drill"], ["fault", "inject", DEVICE, "nan"]):
            run = cortexctl(tmp_path, *words)
            assert run.returncode == Exit.NOT_ALLOWED, run.stderr
            assert "[faults] injection is true" in run.stderr
        listed = cortexctl(tmp_path, "fault", "list")
        assert listed.returncode == Exit.DONE
        assert "none may be ordered here" in listed.stderr


def test_what_a_drill_orders_can_be_simulated() -> None:
    assert set(LASTING) <= set(KINDS)
    bodies = requests("m", 8)
    assert len({json.dumps(body["messages"]) for body in bodies}) == 8


def piece(text: str, end: str | None = None) -> dict[str, object]:
    return {"choices": [{"delta": {"content": text}, "finish_reason": end}]}


def test_a_drill_sees_what_became_of_a_stream() -> None:
    whole = [piece("a"), piece("b", "stop"), "[DONE]"]
    assert told_by(whole) == Told("ab")
    assert told_by(whole[:2]) == Told("ab", "the stream has no end")
    assert told_by([*whole[:2], *whole[1:]]).trouble
    assert told_by([piece("a"), {"error": {"message": "gone"}}]) == Told("a", "gone")


@pytest.mark.parametrize(
    ("one", "exact", "fast"),
    [
        (Round("segv", 4, whole=4, equal=4, happened=True), False, False),
        (Round("segv", 4, whole=4, equal=3, happened=True), True, False),
        (Round("segv", 4, whole=3, equal=3, happened=True), True, True),
        (Round("segv", 4, whole=4, equal=4, happened=False), True, True),
    ],
)
def test_a_drill_fails_as_its_numerics_promise(
    one: Round, exact: bool, fast: bool
) -> None:
    assert is_bad(one, is_exact=True) is exact
    assert is_bad(one, is_exact=False) is fast
