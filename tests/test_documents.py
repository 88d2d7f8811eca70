"""The documents name what the code has: modules, routes, errors, series, keys."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Metric

from cortexd import config as gateway_config
from cortexd import metrics as gateway_metrics
from cortexd import operators as gateway_operators
from cortexd import series
from cortexd.config import Catalogue, Config
from cortexd.ctl.arguments import VERBS
from cortexd.ctl.exits import MEANING
from ipc.eventlog import EventLog
from ipc.page import BOUNDS_S, COUNTERS, GAUGES, SERIES
from neurond import config as node_config
from neurond import families as node_families
from neurond import metrics as node_metrics
from neurond import operators as node_operators
from neurond.frontend import metrics as worker_metrics
from tests.made import DOCS, MADE, ROOT, made_anew

PACKAGES = {
    "ipc": "ipc",
    "neurond": "neurond",
    "neurond/serving": "neurond/serving",
    "neurond/frontend": "neurond/frontend",
    "neurond/device": "neurond/device",
    "cortexd": "cortexd",
    "cortexd/ctl": "cortexd/ctl",
}
PAGES = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "bench").glob("*.md")]


def page(name: str) -> str:
    return (DOCS / name).read_text()


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one of its level or above."""
    level = heading.split(" ")[0]
    _, found, rest = text.partition(f"\n{heading}")
    assert found, f"there is no {heading!r}"
    body = rest.partition("\n")[2]
    return re.split(rf"^#{{1,{len(level)}}} ", body, maxsplit=1, flags=re.MULTILINE)[0]


def ticked(text: str, pattern: str) -> list[str]:
    names = re.findall(r"`([^`\n]+)`", text)
    return [name for name in names if re.match(pattern, name)]


# ---- what is made from code and results ---------------------------------------------


@pytest.mark.parametrize("name", MADE)
def test_what_is_made_from_code_or_results_is_up_to_date(name: str) -> None:
    now, wanted = made_anew(name)

    assert now == wanted, "stale; run: python -m tests.made"


# ---- ARCHITECTURE -------------------------------------------------------------------


@pytest.mark.parametrize("package", PACKAGES)
def test_the_code_map_names_each_module_and_no_other(package: str) -> None:
    text = section(page("ARCHITECTURE.md"), f"### `{package}/`")
    folder = ROOT / PACKAGES[package]
    inner = [ROOT / other for other in PACKAGES if other.startswith(f"{package}/")]
    there = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        if not any(path.is_relative_to(other) for other in inner)
    ]

    assert sorted(ticked(text, r"[\w/]+\.py$")) == sorted(there)


def test_the_architecture_stays_short() -> None:
    assert len(page("ARCHITECTURE.md").splitlines()) <= 250


# ---- api ----------------------------------------------------------------------------


@pytest.mark.parametrize("daemon", ["cortexd", "neurond/frontend"])
def test_every_route_is_in_the_api(daemon: str) -> None:
    source = (ROOT / daemon / "app.py").read_text()
    routes = set(re.findall(r'add_route\(\s*f?"([^"]+)"', source))
    if "/models/{op}" in routes:
        routes = (routes - {"/models/{op}"}) | {"/models/load", "/models/unload"}
        routes |= {"/models/{id}", "/models/{id}/capabilities"}
    routes = {route.replace("{model:path}", "{id}") for route in routes}
    heading = "## Node" if daemon.startswith("neurond") else "## Gateway"
    text = section(page("api.md"), heading)

    named = {name.split(" ")[1] for name in ticked(text, r"(GET|POST) /[^?]*$")}
    assert named - {"/metrics"} == routes  # which has a port of its own


def _operations(made: Any) -> set[str]:
    return set(made._server.handlers)


def test_every_control_operation_is_in_the_api(tmp_path: Path) -> None:
    events = EventLog(tmp_path / "events.jsonl")
    nothing: Any = dict
    orders = node_operators.Orders(*[nothing] * len(fields(node_operators.Orders)))
    left, right = socket.socketpair()
    with left, right:
        node = node_operators.Operators(left, orders, node_config.Config(), events)
        gateway = gateway_operators.Operators(
            right,
            state=dict,
            settings=gateway_config.Settings(Config(), Catalogue()),
            events=events,
            stop=lambda: None,
        )
    text = section(page("api.md"), "## Control sockets")
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| ([^|]+) \|", text, re.MULTILINE)

    assert {op for op, where in rows if "node" in where} == _operations(node)
    assert {op for op, where in rows if "gateway" in where} == _operations(gateway)


# ---- operations ---------------------------------------------------------------------


def _series() -> Iterator[Metric]:
    device = {
        "device": "cpu-0",
        "counters": dict.fromkeys(COUNTERS, 0),
        "gauges": dict.fromkeys(GAUGES, 0),
        "series": {
            name: {"bounds": BOUNDS_S, "counts": [0] * (len(BOUNDS_S) + 1), "sum": 0}
            for name in SERIES
        },
        "memory_total_bytes": 1,
    }
    assert worker_metrics.__doc__  # its series are in the registry by its import
    yield from (m for m in REGISTRY.collect() if m.name.startswith("neurond_"))
    answer = {"devices": [device], "quarantine": {"held": 0, "total": 0}}
    yield from node_families.families(answer)
    yield from node_metrics.NodeCollector(Path("/nowhere")).collect()
    registry = CollectorRegistry()
    series.Series(registry)
    registry.register(gateway_metrics.FleetCollector(Path("/nowhere")))
    yield from registry.collect()


def test_every_series_is_in_the_operations_and_no_other() -> None:
    names = {m.name + ("_total" if m.type == "counter" else "") for m in _series()}
    text = section(page("operations.md"), "## Metrics")

    assert set(ticked(text, r"(neurond|cortexd)_\w+$")) == names


def _keys(cls: type[Any], prefix: str) -> Iterator[tuple[str, str]]:
    hints = get_type_hints(cls)
    for field in fields(cls):
        kinds = (hints[field.name], *get_args(hints[field.name]))
        tables = [kind for kind in kinds if is_dataclass(kind)]
        if tables:
            yield from _keys(cast("type[Any]", tables[0]), f"{field.name}.")
        else:
            yield f"{prefix}{field.name}", _default(field)


def _default(field: Field[Any]) -> str:
    """As TOML; "" where the key is required or has no default worth naming."""
    make = field.default_factory
    value = field.default if make is MISSING else make()
    if value in (MISSING, None, ""):
        return ""
    return json.dumps(value)


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("neuron.toml", node_config.Config),
        ("cortex.toml", Config),
        ("models.toml", Catalogue),
    ],
)
def test_every_key_stands_in_the_operations_with_its_default(
    file: str, kind: type[Any]
) -> None:
    text = section(page("operations.md"), f"### {file}")
    rows = re.findall(r"^\| `([\w.]+)` \| (?:`([^`]*)`)? *\|", text, re.MULTILINE)

    assert sorted(rows) == sorted(_keys(kind, ""))


def test_every_verb_and_exit_code_is_in_the_operations() -> None:
    text = page("operations.md")
    codes = re.findall(r"^\| (\d+) \| ([^|]+) \|$", text, re.MULTILINE)

    assert [verb for verb in VERBS if f"cortexctl {verb}" not in text] == []
    assert {(int(code), words.strip()) for code, words in codes} == {
        (int(code), words) for code, words in MEANING.items()
    }


def test_every_event_in_the_operations_is_one_that_is_written() -> None:
    sources = "".join(
        path.read_text()
        for package in ("neurond", "cortexd")
        for path in (ROOT / package).rglob("*.py")
    )
    written = set(re.findall(r'"([a-z]+\.[a-z_]+)"', sources))
    keepers = set(re.findall(r'"(zygote|frontend|metrics|nvml|fleet)"', sources))
    written |= {f"{name}.died" for name in keepers}
    text = section(page("operations.md"), "## Events")

    named = set(ticked(text, r"[a-z]+\.[a-z_]+$"))
    assert len(named) > 10
    assert named - written == set()


# ---- all pages ----------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_link_between_pages_leads_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text())
    local = [link for link in links if "://" not in link]

    assert [link for link in local if not (path.parent / link).exists()] == []
