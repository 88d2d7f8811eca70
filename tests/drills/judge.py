"""What an answer in a soak came to: exactly one outcome, or what is wrong with it.

    complete   200, every choice ended once, everything as asked for
    rejected   a mistake of the client's, told as such
    refused    429 or 503 with a reason and Retry-After
    ended      a grammar left nothing to go on with, told as such
    left       the client went first

Pure. Everything else is a violation, and `Wrong` says which.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

from tests.drills.caller import Answer
from tests.drills.traffic import EMBEDDINGS, REGEX, SCHEMA, Ask

_BUSY = ("queue_full", "overloaded")
_REASONS = ("stop", "length", "tool_calls")


class Wrong(Exception):
    """A violation, in words."""


@dataclass(slots=True)
class Voice:
    """One choice, put together."""

    text: str = ""
    arguments: str = ""
    reasons: list[str] = field(default_factory=list)
    scores: list[Any] = field(default_factory=list)


def judge(ask: Ask, answer: Answer, *, obeys: bool) -> tuple[str, Any]:
    """The outcome, and what it must be like again. Raises Wrong."""
    if answer.has_left:
        return "left", None
    if answer.status != 200:
        return _error(ask, answer.status, answer.document, answer.headers), None
    _need(ask.status == 200, f"200 for what is {ask.status}")
    if ask.path == EMBEDDINGS:
        return "complete", _vectors(ask, answer.document)
    if ask.streams:
        last = answer.events[-1] if answer.events else None
        if isinstance(last, dict) and "error" in last:
            return _error(ask, 422, last, {"retry-after": "1"}), None
        _need(last == "[DONE]", f"a stream ends with {last!r}")
        _need(answer.events.count("[DONE]") == 1, "two ends")
    voices, usage = gather(ask, answer)
    _check(ask, voices, usage, obeys=obeys)
    told = [
        (v.text, v.arguments, v.reasons, v.scores) for _, v in sorted(voices.items())
    ]
    return "complete", (told, usage["completion_tokens"])


def difference(before: Any, now: Any, tolerance: float) -> str:
    """Where two outcomes of one request part first; "" where they are the same."""
    return _difference(before, now, tolerance, "")


def _difference(before: Any, now: Any, tolerance: float, place: str) -> str:
    told = f"{place}: {before!r} before, now {now!r}"
    if isinstance(before, list | tuple) and isinstance(now, list | tuple):
        if len(before) != len(now):
            return told[:400]
        pairs = enumerate(zip(before, now, strict=True))
        found = (_difference(a, b, tolerance, f"{place}[{i}]") for i, (a, b) in pairs)
        return next(filter(None, found), "")
    if isinstance(before, float) and isinstance(now, float):
        return "" if abs(before - now) <= tolerance else told
    return "" if before == now else told


def text_of(outcome: Any) -> str:
    """The first choice's text, if there is one."""
    told = outcome[0] if isinstance(outcome, tuple) else [("",)]
    return str(told[0][0])


def cached_tokens(ask: Ask, answer: Answer) -> int:
    """Of a complete answer: prompt tokens that were computed before."""
    if ask.path == EMBEDDINGS:
        return 0
    _, usage = gather(ask, answer)
    return int(usage["prompt_tokens_details"]["cached_tokens"])


def gather(ask: Ask, answer: Answer) -> tuple[dict[int, Voice], dict[str, Any]]:
    voices: dict[int, Voice] = {}
    documents = answer.events[:-1] if ask.streams else [answer.document]
    usages = [d["usage"] for d in documents if d.get("usage")]
    for document in documents:
        for choice in document["choices"]:
            _add(voices.setdefault(choice["index"], Voice()), choice)
    _need(len(usages) == 1, f"{len(usages)} usages")
    return voices, usages[0]


def _add(voice: Voice, choice: Any) -> None:
    said = choice.get("delta") or choice.get("message") or choice
    voice.text += said.get("content") or said.get("text") or ""
    for made in said.get("tool_calls") or ():
        voice.arguments += made["function"].get("arguments") or ""
    scores = choice.get("logprobs") or {}
    if "content" in scores:
        voice.scores += [(s["token"], s["logprob"]) for s in scores["content"]]
    else:
        pairs = zip(
            scores.get("tokens", ()), scores.get("token_logprobs", ()), strict=True
        )
        voice.scores += pairs
    if choice["finish_reason"]:
        voice.reasons.append(choice["finish_reason"])


def _error(ask: Ask, status: int, document: Any, headers: dict[str, str]) -> str:
    code = document["error"]["code"]
    if code in _BUSY:
        _need("retry-after" in headers, f"{code} without Retry-After")
        return "refused"
    if code == "grammar_dead_end" and ask.has_shape:
        return "ended"
    _need(status == ask.status, f"{status} {document!r}, not {ask.status}")
    return "rejected"


def _check(
    ask: Ask, voices: dict[int, Voice], usage: dict[str, Any], *, obeys: bool
) -> None:
    _need(sorted(voices) == list(range(ask.num_choices)), f"choices {sorted(voices)}")
    most = ask.body["max_tokens"] * ask.num_choices
    used, prompt = usage["completion_tokens"], usage["prompt_tokens"]
    _need(used <= most, f"{used} tokens, {most} allowed")
    _need(usage["total_tokens"] == used + prompt, f"usage {usage}")
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    _need(0 <= cached <= prompt, f"{cached} cached of {prompt}")
    for voice in voices.values():
        _check_voice(ask, voice, obeys=obeys)
    lasts = all(v.reasons == ["length"] for v in voices.values())
    if lasts and "stop" not in ask.body:
        _need(used == most, f"{used} tokens at length, not {most}")


def _check_voice(ask: Ask, voice: Voice, *, obeys: bool) -> None:
    _need(len(voice.reasons) == 1, f"finish reasons {voice.reasons}")
    _need(voice.reasons[0] in _REASONS, f"finish reason {voice.reasons}")
    _check_stops(ask, voice)
    for token, score in voice.scores:
        fine = score is None or score <= 1e-4
        _need(fine and not (score and math.isnan(score)), f"{token!r} has {score}")
    ends_itself = voice.reasons != ["length"]
    if obeys and ask.has_shape and ends_itself and "stop" not in ask.body:
        _check_shape(ask, voice)
    if ask.body.get("ignore_eos") and "stop" not in ask.body:
        _need(not ends_itself, "it ended although ignore_eos")


def _check_stops(ask: Ask, voice: Voice) -> None:
    stops = ask.body.get("stop", ())
    if ask.body.get("echo"):
        return  # the prompt may have them
    for stop in (stops,) if isinstance(stops, str) else stops:
        _need(stop not in voice.text, f"{stop!r} in {voice.text!r}")


def _check_shape(ask: Ask, voice: Voice) -> None:
    if "guided_regex" in ask.body:
        fits = re.fullmatch(REGEX, voice.text)
        _need(bool(fits), f"{voice.text!r} is not {REGEX}")
    elif "guided_choice" in ask.body:
        _need(voice.text in ask.body["guided_choice"], f"{voice.text!r} was no choice")
    else:
        _check_document(voice.arguments if "tools" in ask.body else voice.text)


def _check_document(text: str) -> None:
    try:
        found = json.loads(text)
    except ValueError:
        raise Wrong(f"{text!r} is no JSON") from None
    fits = (
        set(found) == set(SCHEMA["required"])
        and found["colour"] in ("red", "green", "blue")
        and found["count"] in range(100)
        and found["sure"] in (True, False)
    )
    _need(fits, f"{text!r} is not of the schema")


def _vectors(ask: Ask, document: Any) -> Any:
    vectors = [item["embedding"] for item in document["data"]]
    _need(len(vectors) == len(ask.body["input"]), f"{len(vectors)} vectors")
    for vector in vectors:
        length = math.sqrt(sum(x * x for x in vector))
        _need(abs(length - 1) < 1e-3, f"a vector of length {length}")
    return vectors


def _need(holds: bool, what: str) -> None:
    if not holds:
        raise Wrong(what)
