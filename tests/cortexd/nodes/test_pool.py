"""The HTTP client of the relay against a node that misbehaves, over real sockets."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator

import pytest
import uvloop

from cortexd.nodes import endpoint
from cortexd.nodes.http import Lost, Silent, Unreachable
from cortexd.nodes.pool import Patience, Pool, Request
from tests.cortexd.gateway import chat_body
from tests.cortexd.node_stub import NodeStub, completion, role, until

STREAM = Request("POST", "/v1/chat/completions", (), chat_body("m", stream=True))
WHOLE = Request("POST", "/v1/chat/completions", (), chat_body("m", stream=False))
POLL = Request("GET", "/health", (("Accept", "application/json"),))
PATIENCE = Patience(5.0)
LIMIT = 1 << 20

Work = Callable[[Pool], Awaitable[None]]


@pytest.fixture(scope="module")
def running() -> Iterator[NodeStub]:
    with NodeStub() as node:
        yield node


@pytest.fixture
def node(running: NodeStub) -> NodeStub:
    running.reset()
    return running


def with_pool(target: NodeStub | int, work: Work, *, token: str = "") -> None:
    port = target if isinstance(target, int) else target.port
    place = endpoint.Endpoint("127.0.0.1", port)

    async def run() -> None:
        pool = Pool(place, token=token, connect_timeout_s=2.0)
        try:
            async with asyncio.timeout(20):
                await work(pool)
        finally:
            pool.close()
        assert pool.in_flight == 0

    uvloop.run(run())


async def whole(
    pool: Pool, request: Request = WHOLE, patience: Patience = PATIENCE
) -> tuple[int, bytes]:
    answer = await pool.request(request, patience)
    try:
        return answer.status, await answer.read_all(LIMIT)
    finally:
        answer.release()


def test_an_answer_comes_whole(node: NodeStub) -> None:
    async def work(pool: Pool) -> None:
        assert await whole(pool) == (200, completion())

    with_pool(node, work)


def test_a_stream_comes_as_it_was_sent(node: NodeStub) -> None:
    node.does.num_frames = 50

    async def work(pool: Pool) -> None:
        status, data = await whole(pool, STREAM)
        assert status == 200
        assert data.count(b"\n\n") == 50 + 3

    with_pool(node, work)


def test_connections_are_kept_and_used_again(node: NodeStub) -> None:
    async def work(pool: Pool) -> None:
        for _ in range(5):
            await whole(pool)
            await whole(pool, POLL)
        assert node.num_connections == 1

    with_pool(node, work)


def test_exchanges_at_once_have_a_connection_each(node: NodeStub) -> None:
    node.does.pause_s = 0.05

    async def work(pool: Pool) -> None:
        answers = await asyncio.gather(*[whole(pool) for _ in range(8)])
        assert answers == [(200, completion())] * 8
        assert node.num_connections == 8

    with_pool(node, work)


def test_the_token_is_sent_when_there_is_one(node: NodeStub) -> None:
    async def work(pool: Pool) -> None:
        await whole(pool)

    with_pool(node, work, token="sesame")
    with_pool(node, work)

    keys = [request.headers.get("authorization") for request in node.asked]
    assert keys == ["Bearer sesame", None]


def test_a_head_byte_by_byte_is_a_head(node: NodeStub) -> None:
    node.does.chat = "dribble"

    async def work(pool: Pool) -> None:
        assert await whole(pool) == (200, completion())

    with_pool(node, work)


@pytest.mark.parametrize("chat", ["no_answer", "babble", "cut_short", "die"])
def test_an_answer_that_is_not_whole_is_lost(node: NodeStub, chat: str) -> None:
    node.does.chat = chat

    async def work(pool: Pool) -> None:
        with pytest.raises(Lost):
            await whole(pool, STREAM)

    with_pool(node, work)


def test_what_came_before_the_loss_is_handed_out_first(node: NodeStub) -> None:
    node.does.chat = "die"

    async def work(pool: Pool) -> None:
        answer = await pool.request(STREAM, PATIENCE)
        data = b""
        lost = False
        while not lost:
            try:
                data += await answer.read()
            except Lost:
                lost = True
        answer.release()
        assert data.startswith(role() + b"".join(node.frames()))

    with_pool(node, work)


def test_nobody_listening_is_unreachable_and_nothing_was_sent(node: NodeStub) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]

    async def work(pool: Pool) -> None:
        with pytest.raises(Unreachable):
            await whole(pool)

    with_pool(port, work)


def test_nobody_accepting_is_unreachable_within_the_deadline() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        full = [socket.socket() for _ in range(4)]
        for sock in full:
            sock.setblocking(False)
            sock.connect_ex(deaf.getsockname())

        async def run() -> None:
            place = endpoint.Endpoint(*deaf.getsockname())
            pool = Pool(place, connect_timeout_s=0.1)
            with pytest.raises(Unreachable):
                await pool.request(WHOLE, PATIENCE)

        uvloop.run(run())
        for sock in full:
            sock.close()


@pytest.mark.parametrize("chat", ["hang", "fall_silent"])
def test_silence_ends_at_its_deadline(node: NodeStub, chat: str) -> None:
    node.does.chat = chat

    async def work(pool: Pool) -> None:
        with pytest.raises(Silent):
            await whole(pool, STREAM, Patience(0.1))

    with_pool(node, work)
    until(lambda: node.left == 1)


def test_s46_an_answer_may_take_longer_than_the_silence(node: NodeStub) -> None:
    node.does.num_frames = 8
    node.does.pause_s = 0.06

    async def work(pool: Pool) -> None:
        answer = await pool.request(STREAM, Patience(0.3))
        data = await answer.read_all(LIMIT)
        answer.release()
        assert data.endswith(b"data: [DONE]\n\n")

    with_pool(node, work)


def test_s46_silence_may_go_on_while_the_node_is_alive(node: NodeStub) -> None:
    node.does.pause_s = 0.35
    asked = []

    async def work(pool: Pool) -> None:
        patience = Patience(0.1, lambda silent_s: not asked.append(silent_s))  # type: ignore[func-returns-value]
        answer = await pool.request(WHOLE, patience)
        assert await answer.read_all(LIMIT) == completion()
        answer.release()

    with_pool(node, work)
    assert 2 <= len(asked) <= 4


def test_a_kept_connection_that_died_is_replaced_unseen(node: NodeStub) -> None:
    async def work(pool: Pool) -> None:
        await whole(pool)
        node.stop()
        node.start()
        assert await whole(pool) == (200, completion())

    with_pool(node, work)


def test_a_kept_connection_that_dies_in_use_is_tried_once_on_a_new_one(
    node: NodeStub,
) -> None:
    async def work(pool: Pool) -> None:
        await whole(pool)
        node.does.chat = "no_answer"
        with pytest.raises(Lost):
            await whole(pool)
        assert len(node.asked) == 3

    with_pool(node, work)


def test_leaving_early_closes_the_connection(node: NodeStub) -> None:
    node.does.chat = "fall_silent"

    async def work(pool: Pool) -> None:
        answer = await pool.request(STREAM, PATIENCE)
        answer.release()
        answer.release()
        with pytest.raises(Lost):
            await answer.read()

    with_pool(node, work)
    until(lambda: node.left == 1)


def test_a_cancelled_request_closes_the_connection(node: NodeStub) -> None:
    node.does.chat = "hang"

    async def work(pool: Pool) -> None:
        task = asyncio.ensure_future(pool.request(STREAM, PATIENCE))
        while not node.asked:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with_pool(node, work)
    until(lambda: node.left == 1)


def test_who_does_not_read_makes_the_node_wait(node: NodeStub) -> None:
    node.does.chat = "flood"

    async def work(pool: Pool) -> None:
        answer = await pool.request(STREAM, PATIENCE)
        while not answer._used._is_paused:
            await asyncio.sleep(0.01)
        held = answer._used._buffered_bytes
        for _ in range(10):
            await asyncio.sleep(0.01)
            assert answer._used._buffered_bytes == held
        assert len(await answer.read()) == held
        size = 0
        while size < 8 << 20:  # and reading makes it go on
            size += len(await answer.read())
        answer.release()

    with_pool(node, work)


def test_an_answer_over_the_limit_is_refused(node: NodeStub) -> None:
    node.does.chat = "flood"

    async def work(pool: Pool) -> None:
        answer = await pool.request(STREAM, PATIENCE)
        with pytest.raises(Lost, match="is over"):
            await answer.read_all(LIMIT)
        answer.release()

    with_pool(node, work)


def raw_server(answer: bytes) -> tuple[int, threading.Thread]:
    """Says `answer` to whoever connects, whatever is asked."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with server, server.accept()[0] as client:
            client.recv(65536)
            client.sendall(answer)
            client.settimeout(5)
            while client.recv(65536):
                pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return server.getsockname()[1], thread


def test_an_informational_answer_is_passed_over() -> None:
    port, thread = raw_server(
        b"HTTP/1.1 100 Continue\r\nX-A: 1\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    )

    async def work(pool: Pool) -> None:
        assert await whole(pool) == (200, b"ok")

    with_pool(port, work)
    thread.join(5)


def test_a_second_answer_behind_the_first_is_not_taken_for_anything() -> None:
    port, thread = raw_server(
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno"
    )

    async def work(pool: Pool) -> None:
        assert await whole(pool) == (200, b"ok")
        assert pool._kept() is None

    with_pool(port, work)
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["an endless head", "a bad chunk"],
)
def test_nonsense_costs_the_connection(answer: bytes) -> None:
    port, thread = raw_server(answer)

    async def work(pool: Pool) -> None:
        with pytest.raises(Lost):
            await whole(pool)
        assert pool._kept() is None

    with_pool(port, work)
    thread.join(5)
    assert not thread.is_alive()
