from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Metric
from prometheus_client.registry import Collector

from ipc.journal import Journal
from neurond.serving.scrape import Scrape
from tests.ipc.processkit import run


class Broken(Collector):
    def collect(self) -> Iterator[Metric]:
        raise RuntimeError("/secret/path is torn")


@asynccontextmanager
async def serving(registry: CollectorRegistry, log: io.StringIO | None = None) -> Any:
    """The port of a server with a header deadline of 0.2 s."""
    journal = Journal("test", stream=log or io.StringIO(), mode="text")
    listener = socket.create_server(("127.0.0.1", 0))
    scrape = Scrape(registry, journal, head_deadline_s=0.2)
    server = await scrape.start(listener)
    yield listener.getsockname()[1]
    server.close()


async def ask(port: int, request: bytes) -> tuple[int, bytes, bytes]:
    """Status, head, body; status 0 when it was closed without an answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        answer = await reader.read()
    except ConnectionResetError:
        answer = b""
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]) if head else 0, head, body


def registry() -> CollectorRegistry:
    made = CollectorRegistry()
    Counter("things", "Things", registry=made).inc(3)
    return made


def check(work: Coroutine[Any, Any, None]) -> None:
    run(work)


@pytest.mark.parametrize("path", [b"/metrics", b"/metrics?x=1", b"/"])
def test_the_registry_is_shown_as_text(path: bytes) -> None:
    async def work() -> None:
        async with serving(registry()) as port:
            status, head, body = await ask(port, b"GET %b HTTP/1.1\r\n\r\n" % path)
        assert status == 200
        assert b"Content-Type: text/plain" in head
        assert f"Content-Length: {len(body)}".encode() in head
        assert b"things_total 3.0" in body

    check(work())


def test_openmetrics_is_spoken_to_whom_asks() -> None:
    async def work() -> None:
        async with serving(registry()) as port:
            accept = b"accept: application/openmetrics-text"
            request = b"GET /metrics HTTP/1.1\r\n%b\r\n\r\n" % accept
            _, head, body = await ask(port, request)
        assert b"application/openmetrics-text" in head
        assert body.endswith(b"# EOF\n")

    check(work())


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (b"GET /else HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\n\r\n", 405),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /metrics HTTP/2\r\n\r\n", 400),
        (b"\xff\xfe\r\n\r\n", 400),
    ],
)
def test_what_is_no_scrape_gets_its_status(request_: bytes, expected: int) -> None:
    async def work() -> None:
        async with serving(registry()) as port:
            assert (await ask(port, request_))[0] == expected

    check(work())


def test_an_endless_head_is_refused_or_cut_off() -> None:
    async def work() -> None:
        async with serving(registry()) as port:
            head = b"GET / HTTP/1.1\r\nx: " + b"y" * 100_000
            # what we left unread may reset the connection under our answer
            assert (await ask(port, head))[0] in {400, 0}
            assert (await ask(port, b"GET / HTTP/1.0\r\n\r\n"))[0] == 200

    check(work())


def test_head_has_no_body() -> None:
    async def work() -> None:
        async with serving(registry()) as port:
            status, _, body = await ask(port, b"HEAD /metrics HTTP/1.1\r\n\r\n")
        assert (status, body) == (200, b"")

    check(work())


def test_a_client_that_does_not_ask_is_cut_off_and_holds_up_nobody() -> None:
    async def work() -> None:
        async with serving(registry()) as port:
            slow = asyncio.ensure_future(ask(port, b"GET /met"))
            assert (await ask(port, b"GET / HTTP/1.1\r\n\r\n"))[0] == 200
            assert not slow.done()
            assert (await slow)[0] == 0

    check(work())


def test_beyond_the_bound_of_connections_the_next_is_closed() -> None:
    async def work() -> None:
        async with serving(registry()) as port:
            # the kernel queues them in this order, the server takes them in it
            silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(32)]
            assert (await ask(port, b"GET / HTTP/1.1\r\n\r\n"))[0] == 0
            for sock in silent:
                sock.close()
            while (await ask(port, b"GET / HTTP/1.1\r\n\r\n"))[0] != 200:
                await asyncio.sleep(0.01)

    check(work())


def test_a_broken_collector_is_told_to_the_journal_alone() -> None:
    async def work() -> None:
        log, made = io.StringIO(), CollectorRegistry(auto_describe=False)
        made.register(Broken())
        async with serving(made, log) as port:
            status, _, body = await ask(port, b"GET / HTTP/1.1\r\n\r\n")
        assert status == 500
        assert b"secret" not in body
        assert "/secret/path is torn" in log.getvalue()

    check(work())
