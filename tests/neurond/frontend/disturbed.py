"""Requests that run while somebody kills their device, and the same ones in peace."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tests.harness import Node
from tests.httpclient import Stream

CHAT = "/v1/chat/completions"
TEXTS = "/v1/completions"
VECTORS = "/v1/embeddings"
_CHANGING = ("id", "created", "system_fingerprint")


@dataclass(frozen=True)
class Ask:
    """One request; a stream is put together to what a whole answer would hold."""

    path: str
    body: Mapping[str, Any]

    @property
    def streams(self) -> bool:
        return bool(self.body.get("stream"))

    def run(self, node: Node, on_text: Callable[[], None] = lambda: None) -> Any:
        """The answer, less what differs from one asking to the next."""
        if not self.streams:
            reply = node.http.post(self.path, dict(self.body))
            assert reply.status == 200, reply.body
            return _settled(reply.json)
        connection = node.http._connect()  # noqa: SLF001
        headers = {"content-type": "application/json"}
        connection.request("POST", self.path, json.dumps(dict(self.body)), headers)
        with Stream(connection) as stream:
            documents = []
            for document in stream.data():
                documents.append(document)
                on_text()
        assert documents[-1] == "[DONE]", documents[-1]
        return _gathered([_settled(document) for document in documents[:-1]])


@dataclass
class Killer:
    """Kills the device at token positions that the seed chooses; the streams of all
    requests together are its clock."""

    node: Node
    device: str
    seed: int
    num_kills: int
    kills: int = 0
    _num_texts: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def on_text(self) -> None:
        with self._lock:
            self._num_texts += 1

    def work(self, most_texts: int) -> None:
        """A kill each time that some more has come, as long as more comes."""
        rng = random.Random(self.seed)
        for _ in range(self.num_kills):
            due = self._num_texts + rng.randint(1, most_texts)
            end_s = time.monotonic() + 10
            while self._num_texts < due:
                if time.monotonic() > end_s:
                    return
                time.sleep(0.001)
            try:
                self.node.kill(f"device {self.device}")
            except LookupError:
                continue  # it is between two lives
            self.kills += 1


def undisturbed(node: Node, asks: Sequence[Ask]) -> list[Any]:
    """Each alone."""
    return [ask.run(node) for ask in asks]


def disturbed(node: Node, asks: Sequence[Ask], killer: Killer, most: int) -> list[Any]:
    """All at once."""
    with ThreadPoolExecutor(len(asks) + 1) as pool:
        found = [pool.submit(ask.run, node, killer.on_text) for ask in asks]
        killing = pool.submit(killer.work, most)
        answers = [future.result(60) for future in found]
        killing.result(60)
    return answers


def _settled(document: Any) -> Any:
    """Without ids, times, and what was cached: that depends on who came before."""
    kept = {k: v for k, v in document.items() if k not in _CHANGING}
    usage = kept.get("usage")
    if usage:
        kept["usage"] = {k: v for k, v in usage.items() if type(v) is int}
    return kept


def _gathered(documents: Sequence[Any]) -> Any:
    """By choice: text, log probabilities and finish reason; the last usage."""
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    for document in documents:
        usage = document.get("usage") or usage
        for choice in document["choices"]:
            mine = choices.setdefault(choice["index"], {"text": "", "scores": []})
            delta = choice.get("delta") or choice
            mine["text"] += delta.get("content") or delta.get("text") or ""
            mine["scores"] += _scores(choice.get("logprobs"))
            mine["finish"] = choice.get("finish_reason") or mine.get("finish")
    return {"choices": choices, "usage": usage}


def _scores(logprobs: Any) -> list[Any]:
    if not logprobs:
        return []
    if "content" in logprobs:
        return list(logprobs["content"])
    return list(
        zip(
            logprobs["tokens"],
            logprobs["token_logprobs"],
            logprobs["text_offset"],
            strict=True,
        )
    )
