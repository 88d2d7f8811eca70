"""The plain numbers for the metrics process."""

from __future__ import annotations

import os
import subprocess
import sys

from neurond import figures
from neurond.config import Model
from neurond.modelrecord import ModelRecord
from tests.neurond.slotkit import GIB, Slot, as_slots, loaded_record, page


def test_a_device_counts_over_all_its_lives() -> None:
    slot = Slot()
    slot.odometer.fold(page(lambda w: w.add("emitted_tokens_total", 10)))
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
    assert figures.of_node([], records, {}, {})["models"] == [
        {"id": "a", "status": "loaded"},
        {"id": "b", "status": "unloaded"},
    ]


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
