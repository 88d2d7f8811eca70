"""What a fake model answers, read from the prompt itself.

Device process, torch-free, pure. Ids are bytes, 256 = <|im_start|>, 257 = <|im_end|>
(also EOS). The answer depends on the prompt and the model's options only, so a resumed
sequence goes on with the same ids.

A directive in the last user message overrides the model's options for one request:

    [[fake tokens=64 step_ms=5 fault=sigkill at=10 attempts=1 text="hello"]]

tokens=N   N one-byte tokens of the text "w0 w1 w2 …"
text="…"   this text;  without either: "echo: " + the message less the directive
step_ms=N  duration of a step with this row in it
fault=KIND, at=N   happens instead of emitted token N (0 = the first)
attempts=N         … in the first N attempts only (default: in every one)
"""

from __future__ import annotations

import itertools
import math
import re
import shlex
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

IM_START = 256
IM_END = 257
VOCAB_SIZE = 258
DIMENSIONS = 8
FAULTS = frozenset(
    (
        "exit111",
        "sigkill",
        "segv",
        "abort",
        "hang",
        "nan",
        "host_error",
        "device_assert",
        "shape",
        "oom",
    )
)
_DIRECTIVE = re.compile(r"\[\[fake\b(.*?)\]\]", re.DOTALL)
_USER = list(b"user\n")


@dataclass(frozen=True, slots=True)
class Script:
    """`answer` holds the ids before EOS."""

    answer: tuple[int, ...]
    step_ms: float = 0.0
    prefill_ms: float = 0.0
    fault: str = ""
    fault_at: int = 0
    fault_attempts: int = 1 << 30

    def token(self, index: int) -> int:
        return self.answer[index] if index < len(self.answer) else IM_END

    def fault_now(self, index: int, attempt: int) -> str:
        due = index == self.fault_at and attempt < self.fault_attempts
        return self.fault if due else ""


def script_for(
    prompt: Sequence[int], options: Mapping[str, Any], max_tokens: int
) -> Script:
    """The script of one request."""
    text = last_user_text(prompt)
    match = _DIRECTIVE.search(text)
    told = _parse(match.group(1)) if match else {}
    spoken = _DIRECTIVE.sub("", text).strip() if match else text
    script = Script(
        _answer(spoken, options.get("tokens", "echo"), max_tokens),
        step_ms=float(options.get("step_ms", 0)),
        prefill_ms=float(options.get("prefill_ms", 0)),
    )
    return _override(script, told, max_tokens)


def vector(ids: Sequence[int]) -> bytes:
    """Of length one; dimension i counts the ids that are i modulo DIMENSIONS."""
    counts = [sum(i % DIMENSIONS == d for i in ids) for d in range(DIMENSIONS)]
    length = math.hypot(*counts)
    return struct.pack(f"<{DIMENSIONS}f", *[count / length for count in counts])


def last_user_text(prompt: Sequence[int]) -> str:
    """Content of the last ChatML user turn; the whole prompt when there is none."""
    ids = list(prompt)
    starts = [i for i, token in enumerate(ids) if token == IM_START]
    for start in reversed(starts):
        begin = start + 1 + len(_USER)
        if ids[start + 1 : begin] == _USER:
            end = ids.index(IM_END, begin) if IM_END in ids[begin:] else len(ids)
            return _text(ids[begin:end])
    return _text(ids)


def _text(ids: Sequence[int]) -> str:
    return bytes(i for i in ids if i < 256).decode(errors="replace")


def _answer(spoken: str, kind: Any, max_tokens: int) -> tuple[int, ...]:
    if kind == "count":
        return _counted(max_tokens)
    if kind == "echo":
        return tuple(f"echo: {spoken}".encode())
    return tuple(int(token) for token in kind)


def _counted(num_tokens: int) -> tuple[int, ...]:
    return tuple(itertools.islice(_counting(), num_tokens))


def _counting() -> Iterator[int]:
    for number in itertools.count():
        yield from f"w{number} ".encode()


def _parse(text: str) -> dict[str, str]:
    try:
        words = shlex.split(text)
    except ValueError:  # a quote is open: the message merely looks like a directive
        return {}
    return dict(word.split("=", 1) for word in words if "=" in word)


def _override(script: Script, told: Mapping[str, str], max_tokens: int) -> Script:
    if "tokens" in told:
        script = replace(script, answer=_counted(min(int(told["tokens"]), max_tokens)))
    if "text" in told:
        script = replace(script, answer=tuple(told["text"].encode()))
    if "step_ms" in told:
        script = replace(script, step_ms=float(told["step_ms"]))
    if told.get("fault") not in FAULTS:
        return script
    return replace(
        script,
        fault=told["fault"],
        fault_at=int(told.get("at", 0)),
        fault_attempts=int(told.get("attempts", script.fault_attempts)),
    )
