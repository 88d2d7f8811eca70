from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from ipc.control import ControlServer
from ipc.errors import error_for
from ipc.peer import Peer
from ipc.process import PARENT_PID, pass_settings
from ipc.unixsocket import bind_unix
from neurond.families import families
from neurond.metrics import NodeCollector
from tests.ipc.processkit import PATIENCE_S, wait_for

GPU = {
    "device": "gpu-0",
    "kind": "cuda",
    "state": "ready",
    "generation": 3,
    "counters": {"emitted_tokens_total": 1234, "nan_total": 1},
    "gauges": {"running": 2, "memory_free_bytes": 1},
    "series": {
        "step_seconds": {"bounds": [0.001, 0.5, 1], "counts": [4, 2, 0, 1], "sum": 9.5}
    },
    "deaths_total": 2,
    "faults_total": {"device": 1, "hang": 1},
    "suspects_total": 5,
    "convicted_total": 1,
    "recovery": {"reload": {"bounds": [0.5, 1], "counts": [1, 1, 0], "sum": 1.0}},
    "state_seconds_total": {"ready": 60.5, "backoff": 0.5},
    "memory_total_bytes": 80,
    "memory_free_bytes": 40,
}
CPU = {
    "device": "cpu-0",
    "kind": "cpu",
    "state": "backoff",
    "generation": 1,
    "counters": {"emitted_tokens_total": 7},
    "gauges": {},
    "series": {},
    "deaths_total": 0,
    "memory_total_bytes": 16,
    "memory_free_bytes": None,
}
ANSWER = {
    "devices": [GPU, CPU],
    "models": [
        {
            "id": "smollm2",
            "status": "loading",
            "context": 8192,
            "load_seconds": None,
            "rates": {"prefill_tokens_per_s": 812.5, "decode_tokens_per_s": None},
            "kv": {"used_bytes": 300, "cached_bytes": 20},
        }
    ],
    "processes": [
        {"name": "neurond: worker 1", "pid": 10, "rss_bytes": 100},
        {"name": "neurond: convert", "pid": 11, "rss_bytes": 1},
        {"name": "neurond: convert", "pid": 12, "rss_bytes": 2},
    ],
    "restarts_total": {"zygote": 1, "frontend": 0},
    "quarantine": {"held": 1, "total": 3},
}
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(metrics: Iterator[Metric]) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for metric in metrics
        for sample in metric.samples
    }


def of(seen: Samples, name: str, **labels: str) -> float:
    return seen[name, tuple(sorted(labels.items()))]


def test_counters_and_gauges_bear_their_device() -> None:
    seen = samples(families(ANSWER))
    assert of(seen, "neurond_device_emitted_tokens_total", device="gpu-0") == 1234
    assert of(seen, "neurond_device_emitted_tokens_total", device="cpu-0") == 7
    assert of(seen, "neurond_device_running", device="gpu-0") == 2
    assert of(seen, "neurond_device_deaths_total", device="gpu-0") == 2
    assert of(seen, "neurond_device_generation", device="gpu-0") == 3
    assert of(seen, "neurond_device_info", device="cpu-0", kind="cpu") == 1
    assert ("neurond_device_nan_total", (("device", "cpu-0"),)) not in seen


def test_s01_faults_are_counted_by_class_and_recoveries_by_part() -> None:
    seen = samples(families(ANSWER))
    faults = {"device": "gpu-0", "class": "hang"}
    assert of(seen, "neurond_device_faults_total", **faults) == 1
    assert of(seen, "neurond_device_suspects_total", device="gpu-0") == 5
    assert of(seen, "neurond_device_convicted_total", device="gpu-0") == 1
    reload = {"device": "gpu-0", "part": "reload"}
    assert of(seen, "neurond_device_recovery_seconds_bucket", le="0.5", **reload) == 1
    assert of(seen, "neurond_device_recovery_seconds_count", **reload) == 2
    ready = {"device": "gpu-0", "state": "ready"}
    assert of(seen, "neurond_device_state_seconds_total", **ready) == 60.5
    assert of(seen, "neurond_quarantined") == 1
    assert of(seen, "neurond_quarantines_total") == 3


def test_measured_memory_goes_before_the_devices_own_and_unknown_is_absent() -> None:
    seen = samples(families(ANSWER))
    assert of(seen, "neurond_device_memory_free_bytes", device="gpu-0") == 40
    assert of(seen, "neurond_device_memory_total_bytes", device="cpu-0") == 16
    assert ("neurond_device_memory_free_bytes", (("device", "cpu-0"),)) not in seen


def test_buckets_are_cumulative_and_end_at_infinity() -> None:
    seen = samples(families(ANSWER))
    name = "neurond_device_step_seconds"
    buckets = {
        dict(labels)["le"]: value
        for (sample, labels), value in seen.items()
        if sample == f"{name}_bucket"
    }
    assert buckets == {"0.001": 4, "0.5": 6, "1.0": 6, "+Inf": 7}
    assert of(seen, f"{name}_count", device="gpu-0") == 7
    assert of(seen, f"{name}_sum", device="gpu-0") == 9.5


def test_one_state_is_true_and_the_others_are_false() -> None:
    seen = samples(families(ANSWER))
    name = "neurond_device_state"
    assert of(seen, name, device="gpu-0", state="ready") == 1
    assert of(seen, name, device="gpu-0", state="failed") == 0
    assert of(seen, name, device="cpu-0", state="backoff") == 1
    assert of(seen, "neurond_model_status", model="smollm2", status="loading") == 1
    assert of(seen, "neurond_model_status", model="smollm2", status="loaded") == 0


def test_a_state_that_nobody_announced_is_shown_as_well() -> None:
    seen = samples(families({"devices": [{**CPU, "state": "odd"}]}))
    assert of(seen, "neurond_device_state", device="cpu-0", state="odd") == 1


def test_processes_of_one_name_are_one_series() -> None:
    seen = samples(families(ANSWER))
    name = "neurond_process_resident_bytes"
    assert of(seen, name, process="neurond: convert") == 3
    assert of(seen, name, process="neurond: worker 1") == 100
    assert of(seen, "neurond_process_restarts_total", process="zygote") == 1


def test_a_models_figures_are_series_and_what_is_not_measured_is_absent() -> None:
    seen = samples(families(ANSWER))
    name = "neurond_model_prefill_tokens_per_second"
    assert of(seen, name, model="smollm2") == 812.5
    assert of(seen, "neurond_model_context_tokens", model="smollm2") == 8192
    assert of(seen, "neurond_model_kv_used_bytes", model="smollm2") == 300
    assert of(seen, "neurond_model_kv_cached_bytes", model="smollm2") == 20
    absent = ("load_seconds", "decode_tokens_per_second")
    assert not {key for key in seen if key[0].endswith(absent)}


def test_an_empty_answer_has_no_samples() -> None:
    assert samples(families({})) == {}


# -- the process


@dataclass
class Node:
    """A supervisor's control socket whose answer the test chooses."""

    folder: Path
    answer: dict[str, Any] = field(default_factory=lambda: ANSWER)
    fails: bool = False
    hangs: bool = False

    @property
    def control(self) -> Path:
        return self.folder / "control.sock"

    async def metrics(self, _args: dict[str, Any], _peer: Peer) -> dict[str, Any]:
        if self.hangs:
            await asyncio.sleep(PATIENCE_S)
        if self.fails:
            raise error_for("internal_error", "no")
        return self.answer


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    loop = asyncio.new_event_loop()
    server = ControlServer(
        bind_unix(node.control, socket.SOCK_STREAM, 0o600),
        {"metrics": node.metrics},
        authorize=lambda _peer: True,
        topics={},
    )
    server.start(loop)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield node

    def stop() -> None:
        server.close()
        loop.call_later(0.01, loop.stop)

    loop.call_soon_threadsafe(stop)
    thread.join(PATIENCE_S)
    loop.close()


@dataclass
class Scraped:
    child: subprocess.Popen[bytes]
    port: int

    def get(
        self, path: str = "/metrics", method: str = "GET", **headers: str
    ) -> tuple[int, str, str]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, answer.headers["Content-Type"], text

    def samples(self) -> Samples:
        status, _, text = self.get()
        assert status == 200
        return samples(iter(text_string_to_metric_families(text)))


Start = Callable[[Node], Scraped]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """The metrics process as the supervisor starts it."""
    children: list[subprocess.Popen[bytes]] = []
    folder = tmp_path / "multiproc"
    folder.mkdir()

    def begin(node: Node) -> Scraped:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            settings = pass_settings(
                {
                    "fd": listener.fileno(),
                    "control": str(node.control),
                    "multiproc_dir": str(folder),
                }
            )
            child = subprocess.Popen(
                [
                    *(sys.executable, "-m", "neurond.metrics"),
                    *("--settings-fd", str(settings)),
                ],
                pass_fds=[settings, listener.fileno()],
                env={**os.environ, PARENT_PID: str(os.getpid())},
            )
            os.close(settings)
            children.append(child)
            return Scraped(child, listener.getsockname()[1])

    yield begin
    for child in children:
        child.kill()
        child.wait(PATIENCE_S)


def test_one_scrape_shows_workers_and_devices(
    node: Node, start: Start, tmp_path: Path
) -> None:
    work = (
        "from prometheus_client import Counter\n"
        "Counter('neurond_requests', 'x', ['outcome']).labels('ok').inc(5)\n"
    )
    process = start(node)
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "multiproc")}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", work], env=env, check=True, timeout=20)
    seen = process.samples()
    assert of(seen, "neurond_requests_total", outcome="ok") == 10
    assert of(seen, "neurond_device_emitted_tokens_total", device="gpu-0") == 1234
    assert of(seen, "neurond_supervisor_up") == 1
    assert psutil.Process(process.child.pid).cmdline()[0] == "neurond: metrics"


def test_each_scrape_asks_again(node: Node, start: Start) -> None:
    process = start(node)
    assert of(process.samples(), "neurond_device_generation", device="cpu-0") == 1
    node.answer = {"devices": [{**CPU, "generation": 2}]}
    assert of(process.samples(), "neurond_device_generation", device="cpu-0") == 2


@pytest.mark.parametrize("trouble", ["fails", "hangs"])
def test_the_last_answer_stands_while_the_supervisor_is_in_trouble(
    node: Node, trouble: str
) -> None:
    collector = NodeCollector(node.control, timeout_s=0.2)
    before = samples(collector.collect())
    setattr(node, trouble, True)
    started_s = time.monotonic()
    after = samples(collector.collect())
    assert time.monotonic() - started_s < 2
    assert of(before, "neurond_supervisor_up") == 1
    assert of(after, "neurond_supervisor_up") == 0
    assert {**after, ("neurond_supervisor_up", ()): 1.0} == before


def test_without_a_supervisor_there_is_still_an_answer(
    tmp_path: Path, start: Start
) -> None:
    seen = start(Node(tmp_path)).samples()
    assert seen == {("neurond_supervisor_up", ()): 0}


def test_sigterm_ends_it(node: Node, start: Start) -> None:
    process = start(node)
    process.samples()
    process.child.send_signal(signal.SIGTERM)
    assert process.child.wait(PATIENCE_S) == 0


def test_it_asks_only_when_scraped(node: Node, start: Start) -> None:
    process = start(node)
    assert process.get("/other")[0] == 404
    assert process.get(method="POST")[0] == 405
    wait_for(lambda: process.child.poll() is None, "the process's life")
