"""A small HTTP client for tests: plain sockets, so that a test sees what was sent.

Whole answers, streams of server-sent events read one by one, and raw bytes.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

TIMEOUT_S = 20.0
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json["error"]
        return found

    @property
    def text(self) -> str:
        """The first choice's text."""
        found: str = self.json["choices"][0]["message"]["content"]
        return found


class Stream:
    """An open stream; close it in the middle to be a client that left."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection
        self._response = connection.getresponse()
        self.status = self._response.status
        self.headers = {k.lower(): v for k, v in self._response.getheaders()}

    def frames(self) -> Iterator[str]:
        """Each frame as it comes, comments too, without its blank line."""
        frame = ""
        for line in iter(self._response.readline, b""):
            if line.strip():
                frame += line.decode()
            elif frame:
                yield frame.rstrip("\n")
                frame = ""

    def data(self) -> Iterator[Any]:
        """What each `data:` line holds: a document, or "[DONE]"."""
        for frame in self.frames():
            for line in frame.splitlines():
                if line.startswith("data: "):
                    found = line[6:]
                    yield found if found == "[DONE]" else json.loads(found)

    def text(self) -> str:
        """The first choice's text to the end of the stream."""
        return text_of(list(self.data()))

    def close(self) -> None:
        self._connection.close()
        self._response.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()


class Http:
    """One server; a connection per request, from the address `source` if given."""

    def __init__(self, address: str, model: str, source: str = "") -> None:
        host, _, port = address.rpartition(":")
        self.host, self.port, self.model = host, int(port), model
        self._source = (source, 0) if source else None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Reply:
        return self.send("GET", path, headers=headers)

    def post(
        self, path: str, document: Any, headers: Mapping[str, str] | None = None
    ) -> Reply:
        body = document if isinstance(document, bytes) else json.dumps(document)
        kind = {"content-type": "application/json", **(headers or {})}
        return self.send("POST", path, body=body, headers=kind)

    def chat(self, text: str = "hello", **fields: Any) -> Reply:
        return self.post(CHAT, self.chat_body(text, **fields))

    def stream(self, text: str = "hello", **fields: Any) -> Stream:
        """A chat stream, once its headers are here."""
        headers = {"content-type": "application/json", **fields.pop("headers", {})}
        body = json.dumps(self.chat_body(text, stream=True, **fields))
        connection = self._connect()
        connection.request("POST", CHAT, body=body, headers=headers)
        return Stream(connection)

    def follow(self, path: str, headers: Mapping[str, str] | None = None) -> Stream:
        connection = self._connect()
        connection.request("GET", path, headers=dict(headers or {}))
        return Stream(connection)

    def chat_body(self, text: str = "hello", **fields: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": text}]
        return {"model": self.model, "messages": messages, **fields}

    def send(
        self,
        method: str,
        path: str,
        *,
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        connection = self._connect()
        try:
            connection.request(method, path, body=body, headers=dict(headers or {}))
            response = connection.getresponse()
            named = {k.lower(): v for k, v in response.getheaders()}
            return Reply(response.status, named, response.read())
        finally:
            connection.close()

    def raw(self, data: bytes, *, half_close: bool = False) -> bytes:
        """Send bytes as they are; what came back until the server closed."""
        with socket.create_connection((self.host, self.port), TIMEOUT_S) as sock:
            sock.sendall(data)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: sock.recv(65536), b""))

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(
            self.host, self.port, timeout=TIMEOUT_S, source_address=self._source
        )


def text_of(documents: list[Any], index: int = 0) -> str:
    """The text of one choice of a stream's documents."""
    pieces = []
    for document in documents:
        if document == "[DONE]" or "choices" not in document:
            continue
        for choice in document["choices"]:
            if choice["index"] == index:
                pieces.append(choice["delta"].get("content") or "")
    return "".join(pieces)
