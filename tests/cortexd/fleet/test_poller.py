"""One node's poller and follower against a node that misbehaves, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest
import uvloop

from cortexd.fleet.follower import follow
from cortexd.fleet.poller import NodeRecord, Pace, Poller
from cortexd.nodes.endpoint import Endpoint
from cortexd.nodes.pool import Pool
from tests.cortexd.node_stub import NodeStub, model_fact, until

FAST = Pace(interval_s=0.02, timeout_s=0.2)
PATIENT = Pace(interval_s=60.0, timeout_s=2.0)

Changes = list[tuple[NodeRecord, NodeRecord]]


@pytest.fixture(scope="module")
def running() -> Iterator[NodeStub]:
    with NodeStub("m") as node:
        yield node


@pytest.fixture
def node(running: NodeStub) -> NodeStub:
    running.reset()
    return running


def polled(
    node: NodeStub, pace: Pace, work: Callable[[Poller, Changes], Awaitable[None]]
) -> None:
    async def run() -> None:
        changes: Changes = []
        pool = Pool(Endpoint("127.0.0.1", node.port), connect_timeout_s=1.0)
        poller = Poller("a", pool, pace, lambda old, new: changes.append((old, new)))
        async with asyncio.timeout(20):
            await work(poller, changes)
        pool.close()

    uvloop.run(run())


def test_a_poll_brings_the_nodes_facts(node: NodeStub) -> None:
    async def work(poller: Poller, changes: Changes) -> None:
        await poller.poll()
        record = poller.record
        assert record.standing.state == "up"
        assert record.reading is not None
        assert record.reading.routes[0].id == "m"
        assert record.latency_ms is not None
        assert [old.standing.state for old, _ in changes] == ["unknown"]

    polled(node, PATIENT, work)


def test_what_did_not_change_is_not_sent_again(node: NodeStub) -> None:
    async def work(poller: Poller, _changes: Changes) -> None:
        await poller.poll()
        await poller.poll()
        tags = [r.headers.get("if-none-match") for r in node.polled if "ls" in r.path]
        assert tags == [None, '"boot.1"']
        assert poller.record.reading is not None
        assert poller.record.reading.models[0]["context"] == 8192
        node.does.models.append(model_fact("n"))
        node.does.residency = 2
        await poller.poll()
        assert len(poller.record.reading.models) == 2

    polled(node, PATIENT, work)


def test_s25_one_miss_keeps_a_node_up_three_take_it_down(node: NodeStub) -> None:
    async def work(poller: Poller, _changes: Changes) -> None:
        await poller.poll()
        node.does.mute = True
        states = []
        for _ in range(3):
            await poller.poll()
            states.append((poller.record.standing.state, poller.record.standing.misses))
        assert states == [("up", 1), ("up", 2), ("down", 3)]
        assert poller.record.reading is not None
        assert poller.record.reading.routes[0].id == "m"
        assert poller.record.reason == "no answer in 0.2 s"
        node.does.mute = False
        await poller.poll()
        assert poller.record.standing.state == "up"
        assert poller.record.reason == ""

    polled(node, FAST, work)


def test_a_node_that_is_not_there_is_missed(node: NodeStub) -> None:
    node.stop()

    async def work(poller: Poller, _changes: Changes) -> None:
        await poller.poll()
        assert poller.record.standing.misses == 1
        assert "can't connect" in poller.record.reason

    polled(node, FAST, work)
    node.start()


def test_a_node_that_answers_nonsense_is_missed(node: NodeStub) -> None:
    node.does.models = [{"id": 7, "status": "?", "servable": None, "percent": 0}]

    async def work(poller: Poller, _changes: Changes) -> None:
        await poller.poll()
        assert poller.record.standing.misses == 1
        assert "no such shape" in poller.record.reason

    polled(node, FAST, work)


@pytest.mark.parametrize(
    ("path", "status"), [("/health", 500), ("/models", 404), ("/discovery", 401)]
)
def test_a_node_that_refuses_is_missed(node: NodeStub, path: str, status: int) -> None:
    node.does.statuses = {path: status}

    async def work(poller: Poller, _changes: Changes) -> None:
        await poller.poll()
        assert poller.record.standing.misses == 1
        assert f"{path} answered {status}" in poller.record.reason

    polled(node, FAST, work)


def test_a_node_that_is_not_ready_to_say_more_is_there(node: NodeStub) -> None:
    async def work(poller: Poller, _changes: Changes) -> None:
        await poller.poll()
        node.does.statuses = {"/health": 503, "/models": 503}
        await poller.poll()
        assert poller.record.standing.state == "up"
        assert poller.record.reading is not None
        assert poller.record.reading.state == "starting"
        assert poller.record.reading.routes[0].id == "m"

    polled(node, PATIENT, work)


def test_a_node_without_events_is_not_asked_again_and_again(node: NodeStub) -> None:
    node.does.statuses = {"/events": 404}

    async def work(_poller: Poller, _changes: Changes) -> None:
        woken = asyncio.Event()
        follower = asyncio.ensure_future(follow(poller_pool(node), woken.set))
        await woken.wait()
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)

    polled(node, PATIENT, work)
    assert [request.path for request in node.polled] == ["/events"]


def test_a_node_that_stops_need_not_wait_for_us(node: NodeStub) -> None:
    async def work(_poller: Poller, _changes: Changes) -> None:
        woken = asyncio.Event()
        follower = asyncio.ensure_future(follow(poller_pool(node), woken.set))
        while not node.polled:
            await asyncio.sleep(0.01)
        while not node.left:
            node.event("node.stopping")
            await asyncio.sleep(0.02)
        assert woken.is_set()
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)

    polled(node, PATIENT, work)


def test_polls_go_on_by_themselves(node: NodeStub) -> None:
    async def work(poller: Poller, changes: Changes) -> None:
        task = asyncio.ensure_future(poller.run())
        while len(changes) < 4:
            await asyncio.sleep(0.01)
        task.cancel()
        assert (await asyncio.gather(task, return_exceptions=True)) != [None]

    polled(node, FAST, work)


def test_an_event_brings_the_next_poll_at_once(node: NodeStub) -> None:
    async def work(poller: Poller, changes: Changes) -> None:
        follower = asyncio.ensure_future(follow(poller_pool(node), poller.wake))
        task = asyncio.ensure_future(poller.run())
        while not changes or not any(r.path == "/events" for r in node.polled):
            await asyncio.sleep(0.01)
        seen = len(changes)
        node.does.state = "draining"
        while len(changes) == seen:
            node.event()
            await asyncio.sleep(0.05)
        assert changes[-1][1].reading is not None
        assert changes[-1][1].reading.state == "draining"
        for running in (task, follower):
            running.cancel()
        await asyncio.gather(task, follower, return_exceptions=True)

    polled(node, PATIENT, work)
    until(lambda: node.left >= 1)


def poller_pool(node: NodeStub) -> Pool:
    return Pool(Endpoint("127.0.0.1", node.port), connect_timeout_s=1.0)


def test_who_asks_for_news_gets_a_poll_that_began_afterwards(node: NodeStub) -> None:
    async def work(poller: Poller, changes: Changes) -> None:
        running = asyncio.ensure_future(poller.run())
        while not changes:
            await asyncio.sleep(0)
        node.does.models = [model_fact("m"), model_fact("late")]
        node.does.residency += 1
        await asyncio.gather(*[poller.fresh() for _ in range(8)])
        assert poller.record.reading is not None
        assert [fact.id for fact in poller.record.reading.routes] == ["m", "late"]
        assert len(changes) == 2
        running.cancel()

    polled(node, PATIENT, work)


def test_s25_questions_give_no_node_up_before_its_time(node: NodeStub) -> None:
    """The first one that is missed ends them; the polls go on at their pace."""

    async def work(poller: Poller, changes: Changes) -> None:
        running = asyncio.ensure_future(poller.run())
        while not changes:
            await asyncio.sleep(0)
        node.does.statuses = {"/health": 418}
        for _ in range(5):
            await poller.fresh()
        assert len(changes) == 2
        assert poller.record.standing.state == "up"
        running.cancel()

    polled(node, PATIENT, work)
