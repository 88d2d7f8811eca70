"""Where models go when devices fail or are slow to give memory back."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from ipc.errors import ServiceError
from tests.harness import MODEL, Node


def _fake(name: str, **options: Any) -> dict[str, Any]:
    return {"id": name, "source": "fake", "options": options}


def _kill_once_more(node: Node, device: str) -> None:
    """Until it is back, a generation on, or taken out."""
    before = node.device(device)["generation"]
    node.kill(f"device {device}")

    def is_settled() -> bool:
        now = node.device(device)
        is_back = now["generation"] > before and now["state"] == "ready"
        return bool(is_back or now["state"] == "failed")

    node.wait(is_settled, "the device neither comes back nor is taken out")


def test_s17_a_model_moves_when_its_device_is_taken_out(tmp_path: Path) -> None:
    with Node(tmp_path, devices=2) as node:
        first = node.model()["devices"][0]
        while node.device(first)["state"] != "failed":
            _kill_once_more(node, first)
        assert node.device(first)["state"] == "failed"
        node.wait(lambda: node.model()["status"] == "loaded", "the model is lost")
        assert node.model()["devices"] != [first]
        node.wait(lambda: node.http.chat("x").status == 200, "it does not answer")


def test_a_node_without_a_device_left_asks_to_be_started_again(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.start()
    try:
        node.wait_ready()
        end_s = time.monotonic() + 30
        while node.is_running and time.monotonic() < end_s:
            try:
                if node.device("fake-0")["pid"]:
                    node.kill("device fake-0")
            except (AssertionError, OSError, ServiceError):
                pass  # between two lives, or at the end of the node's own
            time.sleep(0.02)
        assert node.process is not None
        assert node.process.wait(20) == 70
    finally:
        node.sweep()


def test_s35_a_load_waits_for_bytes_that_come_back_late(tmp_path: Path) -> None:
    big = 6 << 30
    models = [_fake("first", memory_bytes=big, free_after_ms=1500)]
    models.append(_fake("second", memory_bytes=big))
    config = {"models": {"default": ["first"]}}
    with Node(tmp_path, models=models, config=config) as node:
        with pytest.raises(ServiceError) as refused:
            node.control("load", model_id="second")
        assert refused.value.code == "insufficient_vram"
        node.control("unload", model_id="first")
        answer = node.control("load", model_id="second")
        assert answer["status"] == "loaded"


def test_a_default_model_that_nobody_knows_shows_why(tmp_path: Path) -> None:
    config = {"models": {"default": [MODEL, "nobody-knows-it"]}}
    node = Node(tmp_path, config=config)
    node.start()
    try:
        node.wait(lambda: node.model()["status"] == "loaded", "tiny is not loaded")
        missing = node.model("nobody-knows-it")
        assert missing["status"] == "failed"
        assert "not known here" in missing["reason"]
        assert node.facts()["state"] == "impaired"
        assert node.terminate() == 0
    finally:
        node.sweep()


def test_failed_orders_for_invented_models_are_not_kept_for_ever(
    tmp_path: Path,
) -> None:
    with Node(tmp_path) as node:
        for number in range(30):
            with pytest.raises(ServiceError):
                node.control("load", model_id=f"no-{number}", source="/nonexistent")
        assert len(node.facts()["models"]) < 30


def test_what_an_order_said_outlives_a_restart_and_nothing_else(
    tmp_path: Path,
) -> None:
    with Node(tmp_path) as node:
        node.control("load", model_id="extra", source="fake", context=512)
    with Node(tmp_path) as node:
        node.wait(lambda: node.model("extra")["status"] == "loaded", "it is forgotten")
        assert node.model("extra")["context"] == 512
        node.control("unload", model_id="extra")
        node.control("unload", model_id=MODEL)
    node = Node(tmp_path)
    node.start()
    try:
        node.wait(lambda: node.facts()["state"] == "ready", "the node is not ready")
        assert node.model()["status"] == "unloaded"
        assert node.terminate() == 0
    finally:
        node.sweep()


def test_a_second_sigterm_cuts_the_drain(tmp_path: Path) -> None:
    config = {"limits": {"drain_s": 60}}
    with Node(tmp_path, options={"step_ms": 50}, config=config) as node:
        stream = node.http.stream("[[fake tokens=4000]]")
        assert node.process is not None
        node.process.send_signal(signal.SIGTERM)
        node.wait(lambda: node.facts()["state"] == "stopping", "it doesn't stop")
        node.process.send_signal(signal.SIGTERM)
        assert node.process.wait(20) == 0
        stream.close()
