"""The parts of documents that are made from code and from results.

`python -m tests.made` writes them anew: what stands between `<!-- made: NAME -->` and
`<!-- made: end -->`. tests/test_documents.py fails while one is stale.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ipc.errors import TABLE

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def errors() -> Iterator[str]:
    yield "| HTTP | code | reference | Retry-After | when |"
    yield "|---|---|---|---|---|"
    for row in sorted(TABLE.values(), key=lambda row: row.status):
        retry = f"{row.retry_after_s} s" if row.retry_after_s else ""
        yield f"| {row.status} | `{row.code}` | {row.ref} | {retry} | {row.cause} |"


def ring() -> Iterator[str]:
    report = _result("ring")
    yield _machine(report)
    yield ""
    yield (
        "| transport | size | CPU per message | ratio | producer | consumer"
        " | one-way p50 | p99 |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for row in report["rows"]:
        yield (
            f"| {row['transport']} | {row['size_bytes']} B | {row['cpu_us']:.2f} µs"
            f" | {row['cpu_ratio']:.2f} × | {row['producer_us']:.2f} µs"
            f" | {row['consumer_us']:.2f} µs | {row['latency_p50_us']:.0f} µs"
            f" | {row['latency_p99_us']:.0f} µs |"
        )


def startup() -> Iterator[str]:
    report = _result("startup")
    yield _machine(report)
    yield ""
    yield "| way | pid known | ready, median | least | most |"
    yield "|---|---|---|---|---|"
    for row in report["rows"]:
        cells = [
            f"{row[f'{name}_ms']:.1f} ms"
            for name in ("forked", "ready", "least", "most")
        ]
        yield f"| {row['way']} | {' | '.join(cells)} |"
    yield ""
    yield f"exec takes {report['ratio']:.1f} × as long."


def _result(name: str) -> Any:
    return json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())


def _machine(report: Any) -> str:
    kernel = re.match(r"\d+\.\d+", report["kernel"])
    assert kernel is not None
    return (
        f"{report['machine']} (virtual), Linux {kernel[0]}, Python {report['python']};"
        f" medians of {report['rounds']} rounds."
    )


MADE: dict[str, tuple[Path, Callable[[], Iterable[str]]]] = {
    "errors": (DOCS / "api.md", errors),
    "ring": (ROOT / "bench" / "RESULTS.md", ring),
    "startup": (ROOT / "bench" / "RESULTS.md", startup),
}


def made_anew(name: str) -> tuple[str, str]:
    """The page as it is, and as it ought to be."""
    path, make = MADE[name]
    text = path.read_text()
    head, begin, rest = text.partition(f"<!-- made: {name} -->\n")
    _, end, tail = rest.partition("<!-- made: end -->")
    assert begin, f"{path.name} has no place for {name}"
    assert end, f"{path.name} has no place for {name}"
    lines = "".join(f"{line}\n" for line in make())
    return text, f"{head}{begin}\n{lines}\n{end}{tail}"


if __name__ == "__main__":
    for made_name, (made_path, _) in MADE.items():
        made_path.write_text(made_anew(made_name)[1])
