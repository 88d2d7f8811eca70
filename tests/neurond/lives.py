"""What tests ask of a node whose devices die: which life, what happened, who talks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

from tests.harness import MODEL, Node
from tests.httpclient import Stream, text_of


def device_of(node: Node, model: str) -> str:
    name: str = node.model(model)["devices"][0]
    return name


def events(node: Node, since: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = node.control("events", since=since)["events"]
    return found


def last_event(node: Node) -> int:
    return int(events(node, 0)[-1]["id"])


def lives(node: Node) -> dict[str, tuple[int, int]]:
    """Pid and generation of each device."""
    return {d["device"]: (d["pid"], d["generation"]) for d in node.facts()["devices"]}


def story_of(node: Node, device: str, since: int) -> list[tuple[str, int]]:
    """What the event log says of a device: kind and generation."""
    mine = [e for e in events(node, since) if e.get("device") == device]
    return [(e["kind"], e["generation"]) for e in mine if "generation" in e]


def wait_for_generation(node: Node, device: str, generation: int) -> None:
    """Until that life of the device serves, and HTTP knows it."""
    wait_until_ready(node, device, generation)
    node.wait_ready()
    for model in node.device(device)["models"]:
        node.wait(partial(answers, node, model), f"{model} is silent")


def wait_until_ready(node: Node, device: str, generation: int) -> None:
    node.wait(
        lambda: is_life(node, device, generation, state="ready"),
        f"{device} has no generation {generation}",
    )


def is_life(node: Node, device: str, generation: int, **wanted: str) -> bool:
    fact = node.device(device)
    return all(fact[k] == v for k, v in {"generation": generation, **wanted}.items())


def answers(node: Node, model: str = MODEL) -> bool:
    reply = node.http.chat("hi", model=model)
    return reply.status == 200 and reply.text == "echo: hi"


def until_some_text(stream: Stream) -> Iterator[Any]:
    """The stream's documents, with some of its text already read."""
    documents = stream.data()
    seen: list[Any] = []
    while not text_of(seen):
        seen.append(next(documents))
    return itertools.chain(seen, documents)
