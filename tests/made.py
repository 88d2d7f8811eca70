"""The parts of documents that are made from code and from results.

`python -m tests.made` writes them anew: what stands between `<!-- made: NAME -->` and
`<!-- made: end -->`. tests/test_documents.py fails while one is stale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ipc.errors import TABLE
from tests import figures

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def errors() -> Iterator[str]:
    yield "| HTTP | code | reference | Retry-After | when |"
    yield "|---|---|---|---|---|"
    for row in sorted(TABLE.values(), key=lambda row: row.status):
        retry = f"{row.retry_after_s} s" if row.retry_after_s else ""
        yield f"| {row.status} | `{row.code}` | {row.ref} | {retry} | {row.cause} |"


MADE: dict[str, tuple[Path, Callable[[], Iterable[str]]]] = {
    "errors": (DOCS / "api.md", errors),
    **{name: (ROOT / "bench" / "RESULTS.md", made) for name, made in figures.MADE},
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
