"""The requests of `cortexctl drill`: streams over HTTP to a node, put together.

Used by cortexctl. Plain sockets and threads, a connection for each stream. What is
asked for can be asked again: greedy, or with a seed.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

Facts = dict[str, Any]
_PATH = "/v1/chat/completions"
_SILENCE_S = 120.0
_REFUSED = "HTTP 503"
_MOST_REFUSALS = 40
_PAUSE_S = 0.25
_EVERYWHERE = ("0.0.0.0", "[::]", "")
_TOPICS = ("the sea", "a bridge", "winter", "a clock", "bread", "two towns")
_DRAWN: tuple[Facts, ...] = ({"temperature": 0}, {"temperature": 0.8})


@dataclass(frozen=True, slots=True)
class Told:
    """One answer: its text, and what kept it from being whole."""

    text: str
    trouble: str = ""


class Caller:
    """`address` as the node's facts have it."""

    def __init__(self, address: str, token: str) -> None:
        host, _, port = address.rpartition(":")
        self._host = "127.0.0.1" if host in _EVERYWHERE else host.strip("[]")
        self._port = int(port)
        self._token = token

    def ask(self, body: Facts) -> Told:
        """Never raises for what a node or a network does. Who is refused, as workers
        hear a moment later that a device is back, asks again."""
        told = self._ask(body)
        for _ in range(_MOST_REFUSALS):
            if not told.trouble.startswith(_REFUSED):
                break
            time.sleep(_PAUSE_S)
            told = self._ask(body)
        return told

    def _ask(self, body: Facts) -> Told:
        connection = http.client.HTTPConnection(
            self._host, self._port, timeout=_SILENCE_S
        )
        try:
            return self._exchange(connection, body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            return Told("", f"{type(error).__name__}: {error}")
        finally:
            connection.close()

    def ask_all(self, bodies: Sequence[Facts]) -> list[Told]:
        """All at once."""
        with ThreadPoolExecutor(len(bodies)) as pool:
            return list(pool.map(self.ask, bodies))

    def _exchange(self, connection: http.client.HTTPConnection, body: Facts) -> Told:
        headers = {"content-type": "application/json"}
        if self._token:
            headers["authorization"] = f"Bearer {self._token}"
        connection.request("POST", _PATH, json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            return Told("", f"HTTP {response.status}: {_message(response.read())}")
        return told_by(list(_documents(response)))


def requests(model: str, count: int) -> list[Facts]:
    """Half of them greedy, half with a seed, no two alike."""
    return [
        {
            "model": model,
            "messages": [{"role": "user", "content": _prompt(number)}],
            "stream": True,
            "max_tokens": 48,
            "min_tokens": 32,
            "seed": 1000 + number,
            **_DRAWN[number % len(_DRAWN)],
        }
        for number in range(count)
    ]


def told_by(documents: Sequence[Any]) -> Told:
    """Of a stream's documents, "[DONE]" among them."""
    choices = [c for d in documents if d != "[DONE]" for c in d.get("choices", ())]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    ends = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    if documents and documents[-1] == "[DONE]" and len(ends) == 1:
        return Told(text)
    errors = [d["error"]["message"] for d in documents if "error" in d]
    return Told(text, errors[0] if errors else "the stream has no end")


def _prompt(number: int) -> str:
    topic, other = _TOPICS[number % 6], _TOPICS[number // 6 % 6]
    return f"Tell story number {number} about {topic} and {other}."


def _documents(response: http.client.HTTPResponse) -> Iterator[Any]:
    for line in iter(response.readline, b""):
        if line.startswith(b"data: "):
            held = line[6:].strip().decode()
            yield held if held == "[DONE]" else json.loads(held)


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return body[:200].decode(errors="replace")
