"""Clients that talk to a node while its devices die, and judge each answer.

Every prompt is said once, by one client, and comes back as its answer: an answer of
somebody else, of an earlier try or of a mixture can't pass for the expected one.

    complete   exactly the expected text, one finish reason, [DONE]
    refused    a status with a reason: 503 or 429 with Retry-After
    cut        so far the expected text, then an error event and no [DONE]
    mixed      any other text
    broken     no terminal event, a status of another kind, a torn connection
    hung       no byte within the deadline, or no end
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tests.httpclient import Http, Reply, text_of

HUNG_S = 10.0
_AFTER_REFUSAL_S = 0.02
_REFUSALS = (429, 503)
_CHARS = "abcdefghijklmnopqrstuvwxyz äöü漢字 0123456789"


def judge_stream(documents: Sequence[Any], expected: str) -> str:
    if not documents:
        return "broken"
    text = text_of(list(documents))
    last = documents[-1]
    if last == "[DONE]":
        is_right = text == expected and _reasons(documents) == ["stop"]
        return "complete" if is_right else "mixed"
    if "error" in last and "[DONE]" not in documents:
        return "cut" if expected.startswith(text) else "mixed"
    return "broken"


def _reasons(documents: Sequence[Any]) -> list[str]:
    choices = [c for d in documents if d != "[DONE]" for c in d.get("choices", ())]
    return [c["finish_reason"] for c in choices if c["finish_reason"]]


def judge_reply(reply: Reply, expected: str) -> str:
    if reply.status == 200:
        return "complete" if reply.text == expected else "mixed"
    is_told = bool(reply.error["code"]) and "retry-after" in reply.headers
    return "refused" if reply.status in _REFUSALS and is_told else "broken"


def documents_of(reply: Reply) -> list[Any]:
    """What the `data:` lines of a whole stream hold."""
    lines = reply.body.decode().split("\n")
    held = [line[6:] for line in lines if line.startswith("data: ")]
    return [one if one == "[DONE]" else json.loads(one) for one in held]


class Chatter:
    """So many clients, each a thread with one request after the other."""

    def __init__(
        self, server: Http, models: Sequence[str], clients: int, seed: int
    ) -> None:
        self.seen: Counter[str] = Counter()
        self.examples: list[str] = []
        self.longest_s = 0.0
        self._server = server
        self._models = models
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._talk, args=(f"{seed}-{number}",), daemon=True)
            for number in range(clients)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Each ends the request that it has; who doesn't is hung."""
        self._stop.set()
        end_s = time.monotonic() + 2 * HUNG_S
        for thread in self._threads:
            thread.join(max(0.0, end_s - time.monotonic()))
        self.seen["hung"] += sum(thread.is_alive() for thread in self._threads)

    def _talk(self, name: str) -> None:
        rng = random.Random(name)
        number = 0
        while not self._stop.is_set():
            number += 1
            said = f"{name}.{number} " + "".join(
                rng.choices(_CHARS, k=rng.randint(1, 60))
            )
            verdict = self._ask(rng, said.strip())
            self.seen[verdict] += 1
            if verdict == "refused":
                time.sleep(_AFTER_REFUSAL_S)

    def _ask(self, rng: random.Random, said: str) -> str:
        model = rng.choice(self._models)
        prompt = f"{said}[[fake step_ms={rng.choice((0, 1, 4))}]]"
        ask = self._stream if rng.random() < 0.5 else self._whole
        begun_s = time.monotonic()
        try:
            verdict = ask(model, prompt, f"echo: {said}")
        except TimeoutError:
            verdict = "hung"
        except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
            verdict = "broken"
            self.examples.append(f"{said!r}: {error!r}")
        took_s = time.monotonic() - begun_s
        self.longest_s = max(self.longest_s, took_s)
        return "hung" if took_s > HUNG_S else verdict

    def _stream(self, model: str, prompt: str, expected: str) -> str:
        reply = self._server.chat(prompt, model=model, stream=True)
        if reply.status == 200:
            verdict = judge_stream(documents_of(reply), expected)
        else:
            verdict = judge_reply(reply, expected)
        self._keep(verdict, expected, (reply.status, reply.body))
        return verdict

    def _whole(self, model: str, prompt: str, expected: str) -> str:
        reply = self._server.chat(prompt, model=model)
        verdict = judge_reply(reply, expected)
        self._keep(verdict, expected, (reply.status, reply.body))
        return verdict

    def _keep(self, verdict: str, expected: str, got: object) -> None:
        if verdict in ("mixed", "broken"):
            self.examples.append(f"{verdict}: expected {expected!r}, got {got!r}")
