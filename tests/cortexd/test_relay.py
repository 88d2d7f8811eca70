"""Requests through a real gateway to nodes that misbehave."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cortexd.gateway import Gateway, chat_body, read_until
from tests.cortexd.node_stub import (
    BUSY,
    DONE,
    NodeStub,
    completion,
    model_fact,
    role,
    until,
)

IDLE_S = 0.5
STALL_S = 0.5


@pytest.fixture(scope="module")
def nodes() -> Iterator[dict[str, NodeStub]]:
    with NodeStub("m") as a, NodeStub("m") as b:
        yield {"a": a, "b": b}


@pytest.fixture(scope="module")
def running(
    nodes: dict[str, NodeStub], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    gateway = Gateway(
        tmp_path_factory.mktemp("gateway"),
        nodes,
        idle_timeout_s=IDLE_S,
        stall_timeout_s=STALL_S,
        body_bytes=100_000,
    )
    (gateway.folder / "models.toml").write_text(
        '[[models]]\nid = "m"\naliases = ["gpt-4o"]\n'
    )
    try:
        yield gateway.start()
    finally:
        gateway.stop()


@pytest.fixture
def gateway(running: Gateway, nodes: dict[str, NodeStub]) -> Gateway:
    """Both nodes up, well and idle."""
    for node in nodes.values():
        node.reset()
        node.does.residency += 1
    until(lambda: seen(running) == {"a": "loaded", "b": "loaded"})
    return running


@pytest.fixture
def node(gateway: Gateway, nodes: dict[str, NodeStub]) -> NodeStub:
    """The only node that serves; the other knows the model and doesn't hold it."""
    nodes["b"].does.models = [model_fact("m", "unloaded")]
    nodes["b"].does.residency += 10
    until(lambda: seen(gateway) == {"a": "loaded", "b": "unloaded"})
    return nodes["a"]


def seen(gateway: Gateway) -> dict[str, str]:
    """Status of model m by node, as a worker knows it."""
    (entry,) = [
        e for e in gateway.get("/v1/models").json["data"] if e["id"] == "m"
    ] or [{"locations": []}]
    return {place["node"]: place["status"] for place in entry["locations"]}


def error_event(stream: bytes) -> dict[str, Any]:
    """The error that a stream ended with."""
    *_, last, nothing = stream.split(b"\n\n")
    assert nothing == b""
    assert last.startswith(b'data: {"error":'), last
    error: dict[str, Any] = json.loads(last[6:])["error"]
    return error


# ---- what is handed through ---------------------------------------------------------


def test_a_whole_answer_is_handed_through(gateway: Gateway) -> None:
    answer = gateway.chat()

    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.body == completion()


def test_a_stream_is_handed_through_without_the_usage_comment(
    node: NodeStub,
    gateway: Gateway,
) -> None:
    node.does.num_frames = 20
    node.does.piece_bytes = 7

    answer = gateway.chat(stream=True)

    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.body == role() + b"".join(node.frames()) + DONE


def test_the_node_gets_the_body_as_it_came_and_our_headers(
    node: NodeStub, gateway: Gateway
) -> None:
    gateway.chat(x_request_id="mine-1", authorization="Bearer sk-placeholder")

    (asked,) = node.asked
    assert asked.body == chat_body("m", stream=False)
    assert asked.headers["x-request-id"] == "mine-1"
    assert asked.headers["x-cortex-usage"] == "1"


def test_s43_a_placeholder_key_is_ignored_and_stays_here(
    node: NodeStub, gateway: Gateway
) -> None:
    answer = gateway.chat(authorization="Bearer sk-none", x_api_key="none")

    assert answer.status == 200
    assert "authorization" not in node.asked[0].headers
    assert "x-api-key" not in node.asked[0].headers


def test_an_alias_reaches_the_node_as_the_models_id(
    node: NodeStub, gateway: Gateway
) -> None:
    assert gateway.chat("gpt-4o").status == 200

    assert node.asked[0].json["model"] == "m"


def test_the_request_id_comes_back(gateway: Gateway) -> None:
    assert gateway.chat(x_request_id="mine-2").headers["x-request-id"] == "mine-2"
    assert gateway.chat().headers["x-request-id"].startswith("req_")


def test_s46_an_answer_may_take_longer_than_the_idle_timeout(
    node: NodeStub, gateway: Gateway
) -> None:
    node.does.num_frames = 12
    node.does.pause_s = IDLE_S / 8

    answer = gateway.chat(stream=True)

    assert answer.body.endswith(DONE)


def test_s46_a_whole_answer_may_take_longer_than_the_idle_timeout(
    node: NodeStub, gateway: Gateway
) -> None:
    node.does.pause_s = IDLE_S * 2.5

    assert gateway.chat().body == completion()


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize"]
)
def test_every_endpoint_of_a_node_is_handed_through(
    node: NodeStub, gateway: Gateway, path: str
) -> None:
    body = b'{"model": "gpt-4o",  "prompt": "x", "input": "y"}'

    answer = gateway.request("POST", path, body, content_type="application/json")

    assert (answer.status, answer.body) == (200, completion())
    (asked,) = node.asked
    assert asked.path == path
    assert asked.json == {"model": "m", "prompt": "x", "input": "y"}
    label = path.rpartition("/")[2]
    counted = (
        rf'cortexd_requests_total\{{endpoint="{label}",model="m",outcome="ok"\}} 1'
    )
    until(lambda: re.search(counted, scrape(gateway)))


def test_tokens_are_counted_where_the_model_is_known_and_not_loaded(
    nodes: dict[str, NodeStub], gateway: Gateway
) -> None:
    for stub in nodes.values():
        stub.does.models = [model_fact("m", "unloaded")]
        stub.does.residency += 20
    until(lambda: seen(gateway) == {"a": "unloaded", "b": "unloaded"})
    nodes["a"].does.chat = "no_answer"

    def asked(path: str) -> int:
        body = b'{"model":"m","prompt":"x"}'
        kind = "application/json"
        return gateway.request("POST", path, body, content_type=kind).status

    assert asked("/tokenize") == asked("/detokenize") == 200
    assert asked("/v1/completions") == asked("/v1/embeddings") == 503


# ---- nodes that die -----------------------------------------------------------------


def test_s47_a_node_that_dies_in_mid_stream_ends_it_with_an_error_event(
    node: NodeStub, gateway: Gateway
) -> None:
    node.does.chat = "die"

    answer = gateway.chat(stream=True, x_request_id="mine-3")

    assert answer.body.startswith(role() + b"".join(node.frames()))
    assert b"never shown" not in answer.body
    assert b"[DONE]" not in answer.body
    error = error_event(answer.body)
    assert error["code"] == "bad_gateway"
    assert error["request_id"] == "mine-3"


@pytest.mark.parametrize("chat", ["fall_silent", "forget_the_end"])
def test_a_stream_without_a_terminal_event_gets_one(
    node: NodeStub, gateway: Gateway, chat: str
) -> None:
    node.does.chat = chat

    answer = gateway.chat(stream=True)

    assert answer.body.startswith(role() + b"".join(node.frames()))
    assert error_event(answer.body)["code"] == "bad_gateway"


def test_an_error_event_of_the_node_is_the_end(
    node: NodeStub, gateway: Gateway
) -> None:
    node.does.chat = "fail"

    answer = gateway.chat(stream=True)

    assert answer.body.count(b'"error"') == 1
    assert error_event(answer.body)["message"] == "the device died"


@pytest.mark.parametrize(
    ("chat", "stream"),
    [
        ("no_answer", False),
        ("no_answer", True),
        ("no_frame", True),
        ("babble", False),
        ("cut_short", False),
        ("hang", True),  # a whole answer may take its time on a node that is up
    ],
)
def test_a_node_that_dies_before_the_first_byte_is_replaced(
    gateway: Gateway, nodes: dict[str, NodeStub], chat: str, stream: bool
) -> None:
    nodes["a"].does.chat = chat
    nodes["b"].does.running = 5  # so that a is asked first
    until(lambda: running_on(gateway, "b") == 5)

    answer = gateway.chat(stream=stream)

    assert len(nodes["a"].asked) in (1, 2)  # twice: a kept connection may be stale
    assert len(nodes["b"].asked) == 1
    assert answer.status == 200
    assert answer.body.endswith(DONE) if stream else answer.body == completion()


def running_on(gateway: Gateway, name: str) -> int:
    """As the fleet knows it; the workers get it at the same time."""
    devices = gateway.facts()["devices"]
    return next((d["running"] for d in devices if d["node"] == name), -1)


@pytest.mark.parametrize("chat", ["no_answer", "no_frame", "babble"])
def test_without_another_node_it_is_a_502(
    node: NodeStub, gateway: Gateway, chat: str
) -> None:
    node.does.chat = chat

    answer = gateway.chat(stream=True)

    assert answer.status == 502
    assert answer.error["code"] == "bad_gateway"
    assert answer.headers["content-type"] == "application/json"


def test_a_busy_node_is_passed_by(gateway: Gateway, nodes: dict[str, NodeStub]) -> None:
    nodes["a"].does.chat = "refuse"
    nodes["a"].does.status = 429
    nodes["a"].does.body = json.dumps({"error": BUSY}).encode()
    nodes["b"].does.running = 5
    until(lambda: running_on(gateway, "b") == 5)

    assert gateway.chat().status == 200
    assert len(nodes["a"].asked) == 1


def test_when_all_are_busy_the_answer_is_theirs(
    node: NodeStub, gateway: Gateway
) -> None:
    node.does.chat = "refuse"
    node.does.status = 429
    node.does.body = json.dumps({"error": BUSY}).encode()

    answer = gateway.chat(x_request_id="mine-4")

    assert answer.status == 429
    assert answer.headers["retry-after"] == "3"
    assert answer.error == {**BUSY, "request_id": "mine-4"}


def test_a_clients_mistake_is_told_by_the_node_and_not_retried(
    gateway: Gateway, nodes: dict[str, NodeStub]
) -> None:
    error = {**BUSY, "code": "context_length_exceeded", "prompt_len": 9, "max": 8}
    for node in nodes.values():
        node.does.chat = "refuse"
        node.does.status = 400
        node.does.body = json.dumps({"error": error}).encode()

    answer = gateway.chat(stream=True)

    assert answer.status == 400
    assert (answer.error["prompt_len"], answer.error["max"]) == (9, 8)
    assert len(nodes["a"].asked) + len(nodes["b"].asked) == 1


def test_s41_s51_what_a_node_lets_slip_stays_here(
    node: NodeStub, gateway: Gateway
) -> None:
    node.does.chat = "refuse"
    node.does.status = 500
    node.does.body = b"Traceback: /srv/secret/engine.py 10.0.0.7 psm_1234"

    answer = gateway.chat(x_request_id="mine-5")

    assert answer.status == 502
    text = answer.body.decode() + str(answer.headers)
    for secret in ("Traceback", "/srv", "10.0.0.7", "psm_", "127.0.0.1", "stub"):
        assert secret not in text
    assert answer.error["request_id"] == "mine-5"
    lines = [x for x in gateway.journal() if x.get("request") == "mine-5"]
    assert lines
    assert "status 500" in str(lines)


# ---- clients that leave -------------------------------------------------------------


@pytest.mark.parametrize("chat", ["fall_silent", "hang", "hold_the_frame"])
def test_s09_a_client_that_leaves_frees_the_node(
    node: NodeStub, gateway: Gateway, chat: str
) -> None:
    node.does.chat = chat

    with gateway.streaming() as client:
        until(lambda: node.asked)
        if chat == "fall_silent":
            read_until(client, b"w2 ")

    until(lambda: node.left == 1, IDLE_S * 0.9)


def test_a_client_that_reads_nothing_is_given_up(
    node: NodeStub, gateway: Gateway
) -> None:
    node.does.chat = "flood"
    before = figures(gateway).get("client_gone", 0)

    with gateway.streaming():
        until(lambda: node.left == 1, STALL_S * 10)
        until(lambda: figures(gateway).get("client_gone", 0) == before + 1)


# ---- refusals of the gateway --------------------------------------------------------


def test_s41_what_is_no_request_is_refused_with_an_id_too(gateway: Gateway) -> None:
    with socket.create_connection(gateway.address, 5) as client:
        client.sendall(b"GET / HTTP/9.9\r\n\r\n")
        head, _, body = read_until(client, b"}}").partition(b"\r\n\r\n")

    error = json.loads(body)["error"]
    assert error["request_id"].startswith("req_")
    assert f"x-request-id: {error['request_id']}".encode() in head.lower()


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b'{"model":"m",}', "application/json", 400, "invalid_json"),
        (b"", "application/json", 400, "invalid_json"),
        (b'{"messages":[]}', "application/json", 400, "invalid_request_error"),
        (b'{"model":"x"}', "application/json", 404, "model_not_found"),
        (b'{"model":"m"}', "text/plain", 415, "unsupported_media_type"),
        (b"x" * 100_001, "application/json", 413, "request_too_large"),
    ],
)
def test_a_bad_request_is_refused_here_with_its_id(
    gateway: Gateway,
    nodes: dict[str, NodeStub],
    body: bytes,
    kind: str,
    status: int,
    code: str,
) -> None:
    answer = gateway.request(
        "POST", "/v1/chat/completions", body, content_type=kind, x_request_id="mine-6"
    )

    assert (answer.status, answer.error["code"]) == (status, code)
    assert answer.error["request_id"] == "mine-6"
    assert not nodes["a"].asked
    assert not nodes["b"].asked


@pytest.mark.parametrize("sends_some", [True, False])
def test_a_truncated_body_is_refused_and_never_acted_on(
    gateway: Gateway, nodes: dict[str, NodeStub], sends_some: bool
) -> None:
    """The client has ended its side and still listens."""
    with socket.create_connection(gateway.address, 5) as client:
        client.sendall(begun(chat_body("m", stream=False) * sends_some))
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(65536), b""))

    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert b'"code":"invalid_json"' in answer
    assert not nodes["a"].asked
    assert not nodes["b"].asked


def test_a_client_that_leaves_in_mid_body_is_counted_and_leaves_nothing(
    gateway: Gateway, nodes: dict[str, NodeStub]
) -> None:
    before = figures(gateway)
    for body in (chat_body("m", stream=False), b""):
        with socket.create_connection(gateway.address, 5) as client:
            client.sendall(begun(body))
    until(lambda: figures(gateway)["ended"] >= before["ended"] + 2)
    until(lambda: figures(gateway)["in_flight"] == 0)
    assert not nodes["a"].asked
    assert not nodes["b"].asked


def begun(body: bytes) -> bytes:
    """A chat whose body is ten bytes short."""
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body) + 10}\r\n\r\n"
    )
    return head.encode() + body


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", "/v1/chat/completions", 405)],
)
def test_what_is_not_there_is_said_in_our_shape(
    gateway: Gateway, method: str, path: str, status: int
) -> None:
    answer = gateway.request(method, path)

    assert answer.status == status
    assert answer.error["request_id"]


@pytest.mark.parametrize("path", ["/health", "/version", "/v1/models", "/v1/models/m"])
def test_head_is_get_without_the_body(gateway: Gateway, path: str) -> None:
    got, head = gateway.get(path), gateway.request("HEAD", path)

    assert (head.status, head.body) == (got.status, b"")
    assert head.headers["content-length"] == got.headers["content-length"]


def test_a_loading_model_is_503_with_percent_and_retry_after(
    node: NodeStub, gateway: Gateway
) -> None:
    node.does.models = [model_fact("m", "loading", percent=40, eta_s=5.0)]
    node.does.residency += 20
    until(lambda: seen(gateway)["a"] == "loading")

    answer = gateway.chat()

    assert answer.status == 503
    assert answer.error["code"] == "model_loading"
    assert answer.error["percent"] == 40
    assert answer.headers["retry-after"] == "5"


# ---- state --------------------------------------------------------------------------


def test_the_list_has_models_and_aliases(gateway: Gateway) -> None:
    entries = {e["id"]: e for e in gateway.get("/v1/models").json["data"]}

    assert entries.keys() == {"m", "gpt-4o"}
    assert entries["gpt-4o"]["root"] == "m"
    assert entries["m"]["object"] == "model"
    assert entries["m"]["loaded"] is True
    assert entries["m"]["max_model_len"] == 8192
    assert gateway.get("/v1/models/m").json == entries["m"]
    assert gateway.get("/v1/models/gpt-4o").json == entries["gpt-4o"]


def test_a_model_that_is_not_there_is_404(gateway: Gateway) -> None:
    answer = gateway.get("/v1/models/org/none")

    assert answer.status == 404
    assert answer.error["code"] == "model_not_found"


def test_health_and_version_tell_no_host(gateway: Gateway) -> None:
    health, version = gateway.get("/health"), gateway.get("/version")

    assert health.status == version.status == 200
    assert health.json["status"] == "ready"
    assert health.json["nodes"] == {"up": 2, "total": 2}
    assert version.json["cortex"]
    assert socket.gethostname() not in (health.body + version.body).decode().split('"')


def test_s24_state_is_answered_in_milliseconds_while_streams_run(
    gateway: Gateway, nodes: dict[str, NodeStub]
) -> None:
    for node in nodes.values():
        node.does.num_frames = 300
        node.does.pause_s = 0.005
    threads = [
        threading.Thread(target=gateway.chat, kwargs={"stream": True})
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    until(lambda: len(nodes["a"].asked) + len(nodes["b"].asked) == 16)

    took_s = [timed(gateway, path) for path in ("/health", "/v1/models") * 20]

    assert any(thread.is_alive() for thread in threads), "the load ended too early"
    for thread in threads:
        thread.join()
    assert sorted(took_s)[len(took_s) // 2] < 0.05
    assert max(took_s) < 1


def timed(gateway: Gateway, path: str) -> float:
    began_s = time.monotonic()
    assert gateway.get(path).status == 200
    return time.monotonic() - began_s


# ---- figures ------------------------------------------------------------------------


def test_each_request_is_counted_in_exactly_one_outcome(
    node: NodeStub, gateway: Gateway
) -> None:
    before = figures(gateway)
    one_of_each(node, gateway)

    def counted() -> dict[str, float]:
        after = figures(gateway)
        return {key: after[key] - before.get(key, 0) for key in after}

    wanted = {
        "ok": 2,
        "client_error": 2,
        "refused": 1,
        "failed": 1,
        "broken": 1,
        "client_gone": 1,
    }
    until(lambda: counted().get("client_gone"))
    got = counted()
    assert {name: got.get(name, 0) for name in wanted} == wanted
    assert got["prompt"] == 14
    assert got["completion"] == 6
    assert got["cached"] == 4
    assert got["first_token"] == 3  # a stream that was broken had one too
    assert got["ended"] == sum(wanted.values())
    assert figures(gateway)["in_flight"] == 0


def one_of_each(node: NodeStub, gateway: Gateway) -> None:
    gateway.chat()
    gateway.chat(stream=True)
    gateway.chat("no such model")
    gateway.request("POST", "/v1/chat/completions", b"{", content_type="text/plain")
    node.does.chat, node.does.status = "refuse", 429
    node.does.body = json.dumps({"error": BUSY}).encode()
    gateway.chat()
    node.does.chat = "babble"
    gateway.chat()
    node.does.chat = "die"
    gateway.chat(stream=True)
    node.does.chat = "fall_silent"
    with gateway.streaming() as client:
        read_until(client, b"w2 ")


def figures(gateway: Gateway) -> dict[str, float]:
    """Our metrics over all models, by what tells them apart."""
    names = {
        r'cortexd_requests_total\{.*outcome="(\w+)"': "",
        r'cortexd_tokens_total\{kind="(\w+)"': "",
        r"cortexd_time_to_first_token_seconds_count()": "first_token",
        r"cortexd_request_seconds_count()": "ended",
        r"cortexd_requests_in_flight()": "in_flight",
    }
    sums: dict[str, float] = {}
    for line in scrape(gateway).splitlines():
        for pattern, name in names.items():
            if found := re.match(pattern, line):
                key = name or found[1]
                sums[key] = sums.get(key, 0) + float(line.rpartition(" ")[2])
    return sums


def scrape(gateway: Gateway) -> str:
    with urllib.request.urlopen(f"http://{gateway.metrics_address}/metrics") as answer:
        text: bytes = answer.read()
    return text.decode()


def test_names_that_clients_make_up_are_no_labels(gateway: Gateway) -> None:
    gateway.chat("made up")

    assert "made up" not in scrape(gateway)


def test_the_fleet_is_among_the_figures(gateway: Gateway) -> None:
    text = scrape(gateway)

    assert 'cortexd_nodes{node="a",state="up"} 1.0' in text
    assert 'cortexd_nodes{node="a",state="down"} 0.0' in text
    assert 'cortexd_model_servable{model="m"} 1.0' in text
    assert "cortexd_fleet_up 1.0" in text
