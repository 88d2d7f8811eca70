"""What a person sees: within 80 columns, reasons included, health last."""

from __future__ import annotations

from typing import Any

import pytest

from cortexd.ctl import views
from cortexd.ctl.overview import Overview
from cortexd.ctl.screen import Screen
from tests.cortexd.ctl.facts import GIB, NOW_S, Facts, device, gateway, model, node

SCREEN = Screen()
LONG = "a-model-whose-name-has-forty-characters!"


def _status(screen: Screen = SCREEN, **parts: Any) -> list[str]:
    return views.status(Overview(**parts), screen, NOW_S)


def _large_fleet() -> Facts:
    """3 nodes, 6 devices, 10 models: what has to fit one screen."""
    nodes = [
        {
            "name": f"node-{n}",
            "endpoint": f"http://host-{n}.example.internal:13131",
            "state": "down" if n == 2 else "up",
            "since_s": NOW_S - 14,
            "misses": 3,
            "version": {"cortex": "0.1.0"},
            "latency_ms": 12.3,
        }
        for n in range(3)
    ]
    devices = [
        {
            **device(f"gpu-{d}", memory_foreign_bytes=3 * GIB, running=12),
            "node": f"node-{d % 3}",
        }
        for d in range(6)
    ]
    models = [
        {
            "id": f"{LONG[:-2]}{m:02d}",
            "locations": [
                {**model(), "node": "node-0", "status": "loading", "stage": "weights"}
            ],
        }
        for m in range(10)
    ]
    return gateway(nodes=nodes, devices=devices, models=models)


def test_a_well_node_fits_one_screen_and_ends_with_no_problems() -> None:
    lines = _status(node=node(), gateway=gateway())

    assert lines[-1] == "● no problems"
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("unicode", [True, False])
def test_three_nodes_six_devices_ten_long_models_fit_80_columns(unicode: bool) -> None:
    lines = _status(Screen(unicode=unicode), gateway=_large_fleet())

    assert max(map(len, lines)) <= 80
    assert len([line for line in lines if line]) <= 24
    assert unicode or all(line.isascii() for line in lines)


def test_wide_shows_names_whole() -> None:
    lines = _status(Screen(width=1000), gateway=_large_fleet())

    assert any(f"{LONG[:-2]}09" in line for line in lines)


def test_a_state_is_a_word_with_a_sign() -> None:
    rows = [device(), device("cpu-1", state="backoff"), device("c", state="failed")]

    text = "\n".join(views.devices(rows, SCREEN, NOW_S))

    assert "● ready" in text
    assert "◐ backoff" in text
    assert "✗ failed" in text


def test_a_device_that_is_not_ready_says_why() -> None:
    rows = [device(state="backoff", reason="died 3 times, next try in 4 s")]

    assert "died 3 times" in "\n".join(views.devices(rows, Screen(width=200), NOW_S))


def test_a_device_that_died_once_shows_its_last_fault() -> None:
    fault = {"class": "device", "type": "CudaError", "chain": [], "time_s": NOW_S}

    lines = views.devices([device(last_fault=fault)], SCREEN, NOW_S)

    assert "last fault: CudaError" in lines[1]


def test_memory_of_other_programs_is_shown_where_there_is_some() -> None:
    without = views.devices([device()], SCREEN, NOW_S)
    with_some = views.devices([device(memory_foreign_bytes=3 * GIB)], SCREEN, NOW_S)

    assert "FOREIGN" not in without[0]
    assert "3.0 GiB" in with_some[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"status": "loading", "stage": "weights", "percent": 42.7, "eta_s": 12},
            "weights 42% 12s left",
        ),
        ({"status": "loading", "percent": None, "reason": "queued"}, "queued"),
        ({"status": "failed", "reason": "no such file"}, "no such file"),
        ({"pinned": True}, "pinned"),
        (
            {"servable": {"ok": False, "reason": "no memory"}},
            "not servable: no memory",
        ),
    ],
)
def test_a_model_says_how_far_it_is_or_why_it_does_not_serve(
    changes: Facts, words: str
) -> None:
    lines = views.models([model(**changes)], Screen(width=200), NOW_S)

    assert lines[1].endswith(words)


def test_a_model_shows_how_fast_it_is_and_its_part_of_the_cache() -> None:
    kv = {"budget_bytes": 4 * GIB, "used_bytes": GIB, "cached_bytes": GIB}
    rates = {"prefill_tokens_per_s": 812.3, "decode_tokens_per_s": None}

    lines = views.models([model(kv=kv, rates=rates)], Screen(width=200), NOW_S)

    assert lines[0].split()[4:7] == ["PREFILL/S", "DECODE/S", "KV"]
    assert lines[1].split("8192")[1].split()[:3] == ["812", "-", "2.0/4.0"]


def test_health_comes_last_with_its_next_command() -> None:
    short = {"level": "error", "code": "CX-CUDA", "text": "broken", "next": "reboot"}
    long = {"level": "warning", "code": "CX-B", "text": "x" * 70, "next": "cortexctl"}

    lines = _status(node=node(health=[long, short]))

    assert lines[-3:] == [
        "✗ CX-CUDA: broken; next: reboot",
        f"◐ CX-B: {'x' * 70}",
        "  next: cortexctl",
    ]


def test_a_long_cause_is_wrapped_and_nothing_of_it_is_lost() -> None:
    cause = " ".join(f"word{number}" for number in range(30))
    line = {"level": "error", "code": "CX-A", "text": cause, "next": "do it"}

    lines = views.health([line], SCREEN)

    assert max(map(len, lines)) <= 80
    assert all(word in " ".join(lines) for word in cause.split())
    assert lines[-1] == "  next: do it"


def test_a_node_that_is_not_ready_never_shows_as_well() -> None:
    lines = _status(node=node(state="starting"))

    assert lines[-1] == "◐ not ready yet: starting; next: cortexctl models"


def test_facts_of_an_older_daemon_show_what_they_have() -> None:
    lines = _status(
        node={"node": "old", "devices": [{}], "models": [{"id": "m"}]},
        gateway={"gateway": "old", "nodes": [{"version": "0.0.9"}]},
    )

    assert "0.0.9" in "\n".join(lines)
