"""Facts as lines of text: nodes, devices, models, health. Pure.

Used by cortexctl. Every view fits 80 columns; what isn't final carries its reason and
since when; health comes last, each line with its next command (C2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cortexd.ctl import overview as o
from cortexd.ctl.screen import Screen, tone_of
from cortexd.ctl.table import Cell, Column, Row, layout
from cortexd.ctl.units import percent, since, size, span, used_of

Facts = dict[str, Any]

_NODES = (
    Column("NODE", least=10),
    Column("STATE"),
    Column("SINCE", right=True),
    Column("MISSES", right=True, optional=2),
    Column("VERSION", least=6, optional=3),
    Column("LATENCY", right=True, optional=1),
    Column("ENDPOINT", least=16),
)
_DEVICES = (
    Column("DEVICE"),
    Column("NODE", least=8, optional=1),
    Column("STATE"),
    Column("SINCE", right=True),
    Column("GEN", right=True),
    Column("MEMORY", right=True),
    Column("FOREIGN", right=True, optional=2),
    Column("RUN", right=True),
    Column("WAIT", right=True),
    Column("NOTE", least=12),
)
_MODELS = (
    Column("MODEL", least=20),
    Column("NODE", least=8, optional=1),
    Column("STATE"),
    Column("SINCE", right=True, optional=3),
    Column("CONTEXT", right=True, optional=4),
    Column("PREFILL/S", right=True, optional=7),
    Column("DECODE/S", right=True, optional=7),
    Column("KV", right=True, optional=8),
    Column("TYPE", optional=5),
    Column("MEMORY", right=True),
    Column("RUN", right=True),
    Column("WAIT", right=True),
    Column("IDLE", right=True, optional=6),
    Column("NOTE", least=12),
)


def status(overview: o.Overview, screen: Screen, now_s: float) -> list[str]:
    """Everything on one screen."""
    sections = [
        _headers(overview, screen, now_s),
        nodes(o.nodes(overview), screen, now_s),
        devices(o.devices(overview), screen, now_s),
        models(o.models(overview), screen, now_s),
        _closing(overview, screen),
    ]
    lines: list[str] = []
    for section in filter(None, sections):
        lines += ["", *section] if lines else section
    return lines


def _closing(overview: o.Overview, screen: Screen) -> list[str]:
    lines = o.health(overview)
    if lines or o.is_ready(overview):
        return health(lines, screen)
    states = sorted({str(facts.get("state")) for facts in overview.answered})
    words = f"{screen.sign('busy')} not ready yet: {', '.join(states)}"
    return [screen.paint(f"{words}; next: cortexctl models", "busy")]


def _headers(overview: o.Overview, screen: Screen, now_s: float) -> list[str]:
    lines = []
    if gateway := overview.gateway:
        name = str(gateway.get("gateway", ""))
        known = gateway.get("nodes", ())
        up = sum(node.get("state") == "up" for node in known)
        extra = [f"{up} of {len(known)} nodes up"]
        lines.append(_header("gateway", name, gateway, extra, screen, now_s))
    if node := overview.node:
        host = node.get("host", {})
        total = host.get("memory_total_bytes", 0)
        used = used_of(total - host.get("memory_free_bytes", 0), total)
        extra = [f"{host.get('cores', '?')} cores", f"memory {used}"]
        lines.append(
            _header("node", str(node.get("node", "")), node, extra, screen, now_s)
        )
    return lines


def _header(  # noqa: PLR0913  one line of six independent parts
    kind: str, name: str, facts: Facts, extra: list[str], screen: Screen, now_s: float
) -> str:
    state = _state(str(facts.get("state", "?")), screen)
    version = (facts.get("version") or {}).get("cortex")
    parts = [
        f"{kind:<7}  {name}",
        screen.paint(state.text, state.tone),
        f"up {since(facts.get('started_s'), now_s)}",
        *([f"cortex {version}"] if version else []),
        *extra,
    ]
    return "  ".join(parts)


def nodes(rows: Sequence[Facts], screen: Screen, now_s: float) -> list[str]:
    """The fleet's nodes."""
    cells: list[Row] = [
        (
            str(node.get("name", "")),
            _state(str(node.get("state", "?")), screen),
            since(node.get("since_s"), now_s),
            str(node.get("misses", 0)),
            _version(node.get("version")),
            _latency(node.get("latency_ms")),
            str(node.get("endpoint", "")),
        )
        for node in rows
    ]
    return _table(_NODES, cells, screen)


def devices(rows: Sequence[Facts], screen: Screen, now_s: float) -> list[str]:
    """Devices, their memory and why they aren't ready."""
    cells: list[Row] = [
        (
            str(device.get("device", "")),
            str(device.get("node", "")),
            _state(str(device.get("state", "?")), screen),
            since(device.get("since_s"), now_s),
            str(device.get("generation", "-")),
            _device_memory(device),
            size(device.get("memory_foreign_bytes") or None),
            str(device.get("running", 0)),
            str(device.get("waiting", 0)),
            _device_note(device),
        )
        for device in rows
    ]
    return _table(*_without_single_node(_DEVICES, cells), screen)


def models(rows: Sequence[Facts], screen: Screen, now_s: float) -> list[str]:
    """Models, how far they are and what they hold."""
    cells: list[Row] = [
        (
            str(model.get("id", "")),
            str(model.get("node", "")),
            _state(str(model.get("status", "?")), screen),
            since(model.get("since_s"), now_s),
            str(model.get("context") or "-"),
            _rate(model, "prefill"),
            _rate(model, "decode"),
            _kv(model),
            _type(model),
            size(model.get("resident_bytes") or None),
            str(model.get("running", 0)),
            str(model.get("waiting", 0)),
            since(model.get("last_used_s"), now_s),
            _model_note(model),
        )
        for model in rows
    ]
    return _table(*_without_single_node(_MODELS, cells), screen)


def health(lines: Sequence[Facts], screen: Screen) -> list[str]:
    """What needs attention, or that nothing does."""
    if not lines:
        return [screen.paint(f"{screen.sign('good')} no problems", "good")]
    import textwrap  # only where there is something to wrap

    out = []
    for line in lines:
        tone = "bad" if line.get("level") == "error" else "busy"
        head = f"{screen.sign(tone)} {line.get('code', '')}: {line.get('text', '')}"
        follow = f"next: {line.get('next', '')}"
        joined = f"{head}; {follow}"
        if len(joined) <= screen.width:
            out.append(screen.paint(joined, tone))
        else:
            wrapped = textwrap.wrap(head, screen.width, subsequent_indent="  ")
            out += [screen.paint(part, tone) for part in wrapped]
            out.append(f"  {follow}")
    return out


def _table(columns: Sequence[Column], rows: Sequence[Row], screen: Screen) -> list[str]:
    if not rows:
        return []
    return layout(
        columns,
        rows,
        width=screen.width,
        ellipsis=screen.ellipsis,
        paint=screen.paint,
    )


def _without_single_node(
    columns: Sequence[Column], rows: Sequence[Row]
) -> tuple[Sequence[Column], Sequence[Row]]:
    """Where all is on one node, its name says nothing; so do notes that nobody has."""
    empty = {
        index
        for index, column in enumerate(columns)
        if (column.title == "NODE" and len({row[index] for row in rows}) <= 1)
        or (column.title in ("NOTE", "FOREIGN") and _blank(rows, index))
    }
    kept = [index for index in range(len(columns)) if index not in empty]
    return (
        [columns[index] for index in kept],
        [[row[index] for index in kept] for row in rows],
    )


def _blank(rows: Sequence[Row], index: int) -> bool:
    return all(row[index] in ("", "-") for row in rows)


def _state(state: str, screen: Screen) -> Cell:
    tone = tone_of(state)
    return Cell(f"{screen.sign(tone)} {state}", tone)


def _version(version: Any) -> str:
    if isinstance(version, dict):
        version = version.get("cortex")
    return str(version or "-")


def _latency(latency_ms: float | None) -> str:
    return "-" if latency_ms is None else f"{latency_ms:.0f} ms"


def _device_memory(device: Facts) -> str:
    total = device.get("memory_total_bytes") or 0
    return used_of(total - (device.get("memory_free_bytes") or 0), total)


def _device_note(device: Facts) -> str:
    if device.get("state") != "ready":
        return str(device.get("reason") or device.get("phase") or "")
    if told := device.get("suspect") or device.get("reset_wanted"):
        return str(told)
    fault = device.get("last_fault")
    return f"last fault: {fault.get('type') or fault.get('class')}" if fault else ""


def _rate(model: Facts, phase: str) -> str:
    """Tokens a second; those of "decode" are one stream's."""
    rate = (model.get("rates") or {}).get(f"{phase}_tokens_per_s")
    return "-" if rate is None else f"{rate:.0f}"


def _kv(model: Facts) -> str:
    """What requests and the prefix store hold of the budget."""
    kv = model.get("kv") or {}
    held = (kv.get("used_bytes") or 0) + (kv.get("cached_bytes") or 0)
    return used_of(held, kv.get("budget_bytes") or 0)


def _type(model: Facts) -> str:
    quant = model.get("quant")
    return str(quant if quant and quant != "none" else model.get("dtype") or "-")


def _model_note(model: Facts) -> str:
    if model.get("status") in ("converting", "loading", "recovering", "fetching"):
        return progress(model)
    servable = model.get("servable") or {}
    if servable.get("ok") is False and model.get("status") == "loaded":
        return f"not servable: {servable.get('reason', '')}"
    note = str(model.get("reason") or "")
    return ", ".join(filter(None, ["pinned" if model.get("pinned") else "", note]))


def progress(model: Facts) -> str:
    """Stage, percent and time left, as far as they are known."""
    eta_s = model.get("eta_s")
    parts = [
        str(model.get("stage") or ""),
        percent(model["percent"]) if model.get("percent") is not None else "",
        f"{span(eta_s)} left" if eta_s else "",
    ]
    return " ".join(filter(None, parts)) or str(model.get("reason") or "")
