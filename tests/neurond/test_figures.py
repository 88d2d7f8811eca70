"""The plain numbers for the metrics process."""

from __future__ import annotations

import os
import subprocess
import sys

from ipc.status import ModelFigures, StatusWriter
from neurond import figures
from neurond.config import Model
from neurond.modelrecord import ModelRecord
from tests.neurond.slotkit import GIB, Slot, as_slots, loaded_record, page


def test_a_device_counts_over_all_its_lives() -> None:
    slot = Slot()
    slot.history.odometer.fold(page(lambda w: w.add("emitted_tokens_total", 10)))
    slot.page = page(lambda w: w.add("emitted_tokens_total", 1))
    told = figures.of_node(as_slots(slot), [], {}, {})["devices"][0]
    assert told["counters"]["emitted_tokens_total"] == 11
    assert told["deaths_total"] == 2
    assert (told["device"], told["kind"], told["state"]) == ("fake-0", "fake", "ready")
    assert (told["memory_total_bytes"], told["memory_free_bytes"]) == (2 * GIB, GIB)
    assert set(told["series"]) == {"step_seconds", "prefill_seconds"}


def test_gauges_are_of_the_process_that_runs() -> None:
    slot = Slot()
    assert figures.of_node(as_slots(slot), [], {}, {})["devices"][0]["gauges"] == {}
    slot.page = page(lambda w: w.set("running", 4))
    told = figures.of_node(as_slots(slot), [], {}, {})["devices"][0]
    assert told["gauges"]["running"] == 4


def test_models_are_told_by_status() -> None:
    records = [loaded_record("a"), ModelRecord(Model("b", "fake"))]
    told = figures.of_node([], records, {}, {})["models"]
    assert [(model["id"], model["status"]) for model in told] == [
        ("a", "loaded"),
        ("b", "unloaded"),
    ]


def test_a_model_tells_its_rates_and_what_it_holds_of_the_cache() -> None:
    def write(writer: StatusWriter) -> None:
        writer.set("kv_budget_bytes", 900)
        writer.model(0, "a", 1, 0, 1.0, ModelFigures(812.34, 31.0, 300, 200))
        writer.model(1, "other", 1, 0, 1.0, ModelFigures(1.0, 1.0, 7, 7))

    slot = Slot()
    slot.page = page(write)
    told = figures.of_node(as_slots(slot), [loaded_record("a")], {}, {})["models"][0]
    rates = {"prefill_tokens_per_s": 812.3, "decode_tokens_per_s": 31.0}
    assert told["rates"] == rates
    kv = told["kv"]
    assert (kv["budget_bytes"], kv["used_bytes"], kv["cached_bytes"]) == (900, 300, 200)
    assert told["context"] == 8192


def test_sizes_are_of_processes_that_live() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(30)
    processes = {"supervisor": None, "zygote": None, "metrics": gone.pid}
    told = figures.of_node([], [], processes, {})["processes"]
    assert [(row["name"], row["pid"]) for row in told] == [("supervisor", os.getpid())]
    assert told[0]["rss_bytes"] > 1 << 20


def test_restarts_are_passed_on() -> None:
    restarts = {"zygote": 1, "frontend": 0}
    assert figures.of_node([], [], {}, restarts)["restarts_total"] == restarts
