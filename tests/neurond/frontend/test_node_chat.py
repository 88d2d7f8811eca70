"""A real node on a fake device, asked over real HTTP: what clients get."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from tests.harness import MODEL, Node
from tests.httpclient import CHAT, text_of

BODY_BYTES = 200_000


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    config = {"limits": {"body_bytes": BODY_BYTES, "drain_s": 5}}
    with Node(tmp_path_factory.mktemp("node"), config=config) as node:
        yield node


def emitted(node: Node) -> int:
    total: int = node.device("fake-0")["emitted_tokens_total"]
    return total


def idle(node: Node) -> bool:
    device = node.device("fake-0")
    return bool(device["running"] == 0 and device["waiting"] == 0)


def test_the_openai_sdk_gets_an_answer_and_a_stream(node: Node) -> None:
    client = openai.OpenAI(base_url=f"{node.http.url}/v1", api_key="placeholder")
    messages = [{"role": "user", "content": "grüße 😀"}]
    asked = {"model": MODEL, "messages": messages}
    whole = client.chat.completions.create(**asked)  # type: ignore[call-overload]
    assert whole.choices[0].message.content == "echo: grüße 😀"
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 18
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options=options)  # type: ignore[call-overload]
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "echo: grüße 😀"
    assert chunks[-1].usage.completion_tokens == 18
    assert MODEL in [model.id for model in client.models.list()]
    with pytest.raises(openai.NotFoundError, match="nope"):
        client.chat.completions.create(**{**asked, "model": "nope"})  # type: ignore[call-overload]


def test_s07_no_frame_of_a_stream_cuts_a_character(node: Node) -> None:
    with node.http.stream("日本語 👩‍👩‍👧 é") as stream:
        pieces = [
            text_of([document]) for document in stream.data() if document != "[DONE]"
        ]
    assert "".join(pieces) == "echo: 日本語 👩‍👩‍👧 é"
    assert not any("\ufffd" in piece for piece in pieces)


def test_s64_s67_null_content_and_both_spellings_of_the_maximum(node: Node) -> None:
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": [{"type": "text", "text": "two"}]},
    ]
    reply = node.http.chat(messages=messages, max_tokens=99, max_completion_tokens=7)
    assert (reply.status, reply.text) == (200, "echo: t")
    assert reply.json["choices"][0]["finish_reason"] == "length"


def test_stop_strings_end_the_text_before_them(node: Node) -> None:
    reply = node.http.chat("[[fake tokens=500]]", stop=["w3 "])
    assert reply.text == "w0 w1 w2 "
    assert reply.json["choices"][0]["finish_reason"] == "stop"


def test_client_mistakes_are_4xx_with_a_reason(node: Node) -> None:
    http = node.http
    assert http.chat(model="nope").error["code"] == "model_not_found"
    assert http.chat(messages=[]).error["param"] == "messages"
    assert http.chat(temperature=-1).error["param"] == "temperature"
    long = http.chat("x" * 9000)
    assert (long.status, long.error["max"]) == (400, 8192)
    assert long.error["prompt_len"] > 9000
    malformed = http.post(CHAT, b'{"model": "tiny",\n "messages": [}')
    assert (malformed.status, malformed.error["line"]) == (400, 2)
    assert http.send("POST", CHAT, body=b"{}").status == 415
    assert http.get("/nowhere").status == 404
    assert http.get(CHAT).status == 405


def test_a_body_over_the_cap_is_413_before_it_is_sent(node: Node) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n{"
    assert b" 413 " in node.http.raw(head)
    assert node.http.chat("x" * BODY_BYTES).status == 413


def test_300_headers_are_refused(node: Node) -> None:
    headers = b"".join(b"x-%d: 1\r\n" % i for i in range(300))
    answer = node.http.raw(b"GET /health HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")
    assert b" 431 " in answer.split(b"\r\n", 1)[0]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("sends_some", [True, False])
def test_a_truncated_body_is_refused_and_never_acted_on(
    node: Node, chunked: bool, sends_some: bool
) -> None:
    """The client has ended its side and still listens."""
    node.wait(lambda: idle(node), "idle")
    before = emitted(node)
    body = json.dumps(node.http.chat_body("never")).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
    head += b"Content-Type: application/json\r\n"
    if chunked:
        head += b"Transfer-Encoding: chunked\r\n\r\n"
        body = b"%x\r\n%b\r\n" % (len(body), body)
    else:
        head += b"Content-Length: %d\r\n\r\n" % (len(body) + 5)
    answer = node.http.raw(head + body * sends_some, half_close=True)
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert b'"code":"invalid_json"' in answer
    assert node.http.chat("x", max_tokens=1).status == 200
    node.wait(lambda: emitted(node) == before + 1, "one token more")


def test_s09_the_device_stops_within_two_steps_of_a_client_that_leaves(
    node: Node,
) -> None:
    node.wait(lambda: idle(node), "idle")
    before = emitted(node)
    stream = node.http.stream("[[fake tokens=400 step_ms=150]]")
    seen = ""
    for document in stream.data():
        seen += text_of([document])
        if len(seen) >= 2:
            break
    stream.close()
    node.wait(lambda: idle(node), "the device goes on", 3)
    steps_after = emitted(node) - before - len(seen)
    assert steps_after <= 3  # the one under way when it left, and two more


def test_s02_nan_is_a_500_for_that_request_alone(node: Node) -> None:
    with node.http.stream("[[fake tokens=40 step_ms=20]]") as neighbour:
        reply = node.http.chat("[[fake tokens=9 fault=nan at=3]]")
        assert (reply.status, reply.error["code"]) == (500, "nan_logits")
        assert len(neighbour.text()) > 0
    assert node.model()["status"] == "loaded"
    assert node.http.chat("x").status == 200


def test_s41_s51_errors_carry_an_id_and_nothing_of_the_inside(node: Node) -> None:
    http = node.http
    replies = [
        http.chat(model="nope"),
        http.chat(n=99),
        http.chat("[[fake tokens=9 fault=nan at=1]]"),
        http.chat("[[fake tokens=9 fault=host_error at=1]]"),
        http.post("/models/load", {"model_id": "../../etc/passwd"}),
        http.post(CHAT, b"{"),
    ]
    for reply in replies:
        assert reply.status >= 400
        assert reply.error["request_id"] == reply.headers["x-request-id"]
        for secret in (str(node.folder), socket.gethostname(), "Traceback", "0x7f"):
            assert secret not in reply.body.decode()
        assert "chain" not in reply.error


def test_a_request_id_goes_through(node: Node) -> None:
    headers = {"x-request-id": "abc-123"}
    with node.http.stream("x", headers=headers) as stream:
        assert stream.headers["x-request-id"] == "abc-123"
        assert stream.text() == "echo: x"


def test_s24_health_and_models_answer_in_milliseconds_beside_32_streams(
    node: Node,
) -> None:
    streams = [node.http.stream("[[fake tokens=2000 step_ms=10]]") for _ in range(32)]
    took_s = []
    try:
        for _ in range(20):
            for path in ("/health", "/models"):
                started_s = time.monotonic()
                assert node.http.get(path).status == 200
                took_s.append(time.monotonic() - started_s)
    finally:
        for stream in streams:
            stream.close()
    took_s.sort()
    assert took_s[len(took_s) // 2] < 0.05
    assert took_s[-1] < 1
    node.wait(lambda: idle(node), "idle")


def test_32_clients_at_once_each_get_their_own_answer(node: Node) -> None:
    with ThreadPoolExecutor(32) as pool:
        replies = list(pool.map(lambda i: node.http.chat(f"n{i}"), range(32)))
    assert [reply.text for reply in replies] == [f"echo: n{i}" for i in range(32)]


def test_workers_hold_no_torch(node: Node) -> None:
    for title in ("frontend", "worker 1"):
        process = node.find(title)
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert "libtorch" not in maps
        assert process.memory_info().rss < 200 << 20
