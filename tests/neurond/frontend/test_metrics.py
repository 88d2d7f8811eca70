"""Every chat is counted once, under its outcome; labels stay bounded."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from prometheus_client import REGISTRY

from tests.neurond.frontend.stage import MODEL, Stage, on_stage, until


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def requests(model: str, outcome: str) -> float:
    return value("neurond_requests_total", model=model, outcome=outcome)


def test_a_completed_chat_counts_its_tokens_and_times(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        before = requests(MODEL, "completed")
        tokens = value("neurond_tokens_total", model=MODEL, kind="completion")
        texts = value("neurond_first_text_seconds_count", model=MODEL)
        await stage.chat("hi", stream=True)
        assert requests(MODEL, "completed") == before + 1
        now = value("neurond_tokens_total", model=MODEL, kind="completion")
        assert now == tokens + len("echo: hi")
        assert value("neurond_first_text_seconds_count", model=MODEL) == texts + 1
        assert value("neurond_requests_in_flight") == 0

    on_stage(tmp_path, play)


def test_a_client_that_leaves_counts_as_cancelled(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        device = stage.device
        assert device is not None
        device.on_submit = lambda submit: device.begin(submit, "a")
        before = requests(MODEL, "cancelled")
        client = asyncio.ensure_future(stage.chat("hi"))
        await until(lambda: len(device.got) == 1)
        assert value("neurond_requests_in_flight") == 1
        client.cancel()
        await until(lambda: requests(MODEL, "cancelled") == before + 1)
        assert value("neurond_requests_in_flight") == 0

    on_stage(tmp_path, play)


def test_a_refusal_is_counted_by_its_code_without_the_clients_text(
    tmp_path: Path,
) -> None:
    async def play(stage: Stage) -> None:
        before = requests("", "model_not_found")
        await stage.chat("hi", model="whatever the client wrote")
        assert requests("", "model_not_found") == before + 1

    on_stage(tmp_path, play)
    names = {s.labels.get("model") for m in REGISTRY.collect() for s in m.samples}
    assert names <= {MODEL, "", None}


def test_a_dead_workers_gauge_is_forgotten(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "from neurond.frontend import metrics\n"
        "metrics.RequestMeter('m', 0.0)\n"
        "metrics.refused('queue_full')\n"
        "metrics.mark_dead(os.getpid())\n"
    )
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=60)
    assert not list(tmp_path.glob("gauge_live*"))
    assert list(tmp_path.glob("counter_*"))
