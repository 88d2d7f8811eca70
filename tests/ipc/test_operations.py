"""What both daemons answer alike, and who may ask."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from ipc.errors import ClientError
from ipc.eventlog import EventLog
from ipc.operations import shared_operations, whole
from ipc.peer import Peer, is_operator

ME = Peer(1, os.geteuid(), os.getegid(), ())
NOBODY = 65534
STATE = {"models": [{"id": "tiny"}], "devices": [], "node": "n"}


def answers(folder: Path, op: str, **args: Any) -> dict[str, Any]:
    events = EventLog(folder / "events.jsonl")
    stops: list[None] = []
    for number in range(3):
        events.append("node.started", number=number)
    handlers = shared_operations(lambda: STATE, events, lambda: stops.append(None))

    async def ask() -> dict[str, Any]:
        return await handlers[op](args, ME)

    told = asyncio.run(ask())
    assert len(stops) == (op == "stop")
    return told


def test_what_is_is_cut_from_the_facts(tmp_path: Path) -> None:
    assert answers(tmp_path, "status") == STATE
    assert answers(tmp_path, "models") == {"models": [{"id": "tiny"}]}
    assert answers(tmp_path, "devices") == {"devices": []}


def test_a_stop_is_passed_on(tmp_path: Path) -> None:
    assert answers(tmp_path, "stop") == {}


def test_events_are_the_oldest_after_an_id(tmp_path: Path) -> None:
    told = answers(tmp_path, "events", since=1, limit=1)["events"]
    assert [event["id"] for event in told] == [2]


@pytest.mark.parametrize("value", [-1, 1.0, "1", None, True, [1]])
def test_a_count_that_is_none_is_named(value: Any) -> None:
    with pytest.raises(ClientError) as caught:
        whole({"limit": value}, "limit", 7)
    assert caught.value.param == "limit"


def test_a_count_that_is_absent_is_the_default() -> None:
    assert whole({}, "limit", 7) == 7
    assert whole({"limit": 0}, "limit", 7) == 0


OTHER_GROUP = os.getegid() + 4000


@pytest.mark.parametrize(
    ("peer", "may"),
    [
        (Peer(1, 0, OTHER_GROUP, ()), True),
        (Peer(1, os.geteuid(), OTHER_GROUP, ()), True),
        (Peer(1, NOBODY, os.getegid(), ()), True),
        (Peer(1, NOBODY, OTHER_GROUP, (1, os.getegid())), True),
        (Peer(1, NOBODY, OTHER_GROUP, ()), False),
        (Peer(1, NOBODY, OTHER_GROUP, (OTHER_GROUP + 1,)), False),
    ],
)
def test_operators_are_root_ourselves_and_our_group(peer: Peer, may: bool) -> None:
    assert is_operator(peer) is may
