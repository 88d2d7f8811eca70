"""Quantities as people read and type them. Pure.

Used by cortexctl: tables, progress, arguments. JSON never passes through here; there
numbers stay raw with the unit in the key.
"""

from __future__ import annotations

_STEPS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
_FACTORS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def size(count: float | None) -> str:
    """1536 → "1.5 KiB"; None → "-"."""
    if count is None:
        return "-"
    value, unit = float(count), 0
    while value >= 1000 and unit < len(_BINARY) - 1:
        value, unit = value / 1024, unit + 1
    digits = 0 if unit == 0 or value >= 100 else 1
    return f"{value:.{digits}f} {_BINARY[unit]}"


def used_of(used: float, total: float) -> str:
    """Two sizes under one unit: "1.2/12.0 GiB"."""
    if total <= 0:
        return "-"
    whole = size(total)
    unit = whole.split(" ")[1]
    scale = 1024 ** _BINARY.index(unit)
    number = whole.split(" ")[0]
    digits = len(number.partition(".")[2])
    return f"{used / scale:.{digits}f}/{number} {unit}"


def span(seconds: float | None) -> str:
    """At most two steps of a duration: 3725 → "1h02m", 45 → "45s"; None → "-"."""
    if seconds is None:
        return "-"
    rest = max(0, int(seconds))
    for index, (name, step) in enumerate(_STEPS[:-1]):
        if rest >= step:
            lower_name, lower = _STEPS[index + 1]
            below = rest % step // lower
            return f"{rest // step}{name}" + (
                f"{below:02d}{lower_name}" if below else ""
            )
    return f"{rest}s"


def since(moment_s: float | None, now_s: float) -> str:
    """Age of a unix time; absent or 0 → "-"."""
    return span(now_s - moment_s) if moment_s else "-"


def percent(value: float | None) -> str:
    """42.7 → "42%"; never rounds up to a hundred that isn't one."""
    return "-" if value is None else f"{int(value)}%"


def shorten(text: str, width: int, ellipsis: str = "…") -> str:
    """`text` in at most `width` columns, the middle left out: both ends tell most."""
    if len(text) <= width:
        return text
    room = width - len(ellipsis)
    if room < 2:
        return text[:width]
    tail = room // 2
    return text[: room - tail] + ellipsis + text[len(text) - tail :]


def parse_count(text: str) -> int:
    """ "32k" → 32768, "8192" → 8192. Raises ValueError."""
    body, factor = _factor(text.strip().lower(), _FACTORS)
    count = float(body) * factor
    if not 0 <= count < 1e18 or count != int(count):
        raise ValueError(text)
    return int(count)


def parse_span(text: str) -> float:
    """ "5m" → 300.0, "90" → 90.0. Raises ValueError."""
    body, factor = _factor(text.strip().lower(), dict(_STEPS))
    seconds = float(body) * factor
    if not 0 <= seconds < 1e9:
        raise ValueError(text)
    return seconds


def _factor(text: str, factors: dict[str, int]) -> tuple[str, int]:
    if text and text[-1] in factors:
        return text[:-1], factors[text[-1]]
    return text, 1
