"""The fields that say how an answer is drawn, and what they mean for one model.

Pure; front end and gateway. Chat and text completions share them. `parse_sampling`
checks what can be known without the model, `resolve` puts the model's window,
vocabulary, stop ids and generation defaults to it.

Order of precedence (S70): request > the model's generation_config.json > built-in.
Invariant: what `resolve` returns is inside every range that the device checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ipc.errors import ClientError
from ipc.messages import Sampling
from neurond.serving import fields

MAX_CHOICES = 16
MAX_STOPS = 16
MAX_STOP_CHARS = 1024
MAX_STOP_IDS = 256
MAX_BIASES = 1024
MAX_TOP_LOGPROBS = 20
MAX_SALT_CHARS = 256

_NUMBERS = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 10.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
_DEFAULTED = ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty")
_GREATEST_INT32 = (1 << 31) - 1
_NUM_SEEDS = 1 << 64
_LEAST_MASS = 1e-6
"""A nucleus of nothing is no distribution; the client means "the best token only"."""
_LEAST_WINDOW = 2
"""Tokens: one of a prompt and one of its answer."""


@dataclass(frozen=True, slots=True)
class SamplingRequest:
    """Fields of a body, each in range. `given` holds those of `Sampling` that the body
    has; `max_tokens` None = as many as there is room for; `seed` is of 64 bits, without
    a sign. Computed prompts are shared
    between requests with the same `cache_salt` only."""

    n: int
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    max_tokens: int | None
    seed: int | None
    given: Mapping[str, Any]
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What a model sets for its requests; `stop_ids` end an answer by themselves."""

    window: int
    vocab_size: int
    defaults: Mapping[str, Any]
    stop_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a device is asked for. `max_tokens` fits into the window."""

    sampling: Sampling
    max_tokens: int
    stop_ids: tuple[int, ...]


def parse_sampling(
    body: fields.Body,
    *,
    max_tokens: int | None,
    logprobs: int = -1,
    prompt_logprobs: int = -1,
) -> SamplingRequest:
    """`max_tokens` and the logprobs (see `Sampling`) are spelt differently by each
    dialect, which reads them itself. Raises ClientError naming the field."""
    given = _given(body)
    asked = {"logprobs": logprobs, "prompt_logprobs": prompt_logprobs}
    given.update({name: value for name, value in asked.items() if value >= 0})
    return SamplingRequest(
        n=fields.integer(body, "n", 1, MAX_CHOICES) or 1,
        stop=_stops(body.get("stop")),
        stop_token_ids=_stop_token_ids(body.get("stop_token_ids")),
        max_tokens=max_tokens,
        seed=_seed(body.get("seed")),
        given=given,
        cache_salt=fields.text(body, "cache_salt", max_chars=MAX_SALT_CHARS) or "",
    )


def resolve(
    request: SamplingRequest,
    limits: ModelLimits,
    *,
    num_prompt: int,
    param: str = "messages",
) -> Resolved:
    """`param` names the prompt. Raises ClientError."""
    room = limits.window - num_prompt
    if room < 1 and not (room == 0 and request.max_tokens == 0):
        raise context_error(num_prompt, limits.window, param=param)
    max_tokens = room if request.max_tokens is None else min(request.max_tokens, room)
    sampling = Sampling(**{**limits.defaults, **request.given})
    biased = [token for token, _ in sampling.logit_bias]
    _check_known("logit_bias", biased, limits.vocab_size)
    _check_known("stop_token_ids", request.stop_token_ids, limits.vocab_size)
    if sampling.min_tokens > max_tokens:
        wanted = f"at most max_tokens ({max_tokens})"
        raise fields.invalid("min_tokens", wanted, sampling.min_tokens)
    # a configuration may name ids that the model doesn't have
    known = [token for token in limits.stop_ids if token < limits.vocab_size]
    ends = [] if sampling.ignore_eos else known
    stop_ids = tuple(dict.fromkeys((*ends, *request.stop_token_ids)))
    return Resolved(sampling, max_tokens, stop_ids)


def context_error(
    num_prompt: int, window: int, *, param: str = "messages", is_least: bool = False
) -> ClientError:
    """Agent clients compact their history on this one (S74), unless there is no room
    for any prompt: that no shorter one would cure (S26). `is_least`: the prompt may
    have more tokens; one that can't fit isn't counted to its end."""
    if window < _LEAST_WINDOW:
        words = "the device has no memory left for any prompt of this model"
        return ClientError(words, code="prompt_too_long_for_vram")
    verb = "have" if param.endswith("s") else "has"
    number = f"at least {num_prompt}" if is_least else f"{num_prompt}"
    return ClientError(
        f"this model's maximum context length is {window} tokens, but the {param}"
        f" {verb} {number} tokens and an answer needs room; shorten the {param}",
        code="context_length_exceeded",
        param=param,
        fields={"prompt_len": num_prompt, "max": window},
    )


def generation_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling fields of a generation_config.json; a bad one counts as absent."""
    defaults: dict[str, Any] = {}
    for name in _DEFAULTED:
        _take(defaults, name, lambda n=name: fields.number(config, n, *_NUMBERS[n]))
    _take(defaults, "top_k", lambda: fields.integer(config, "top_k", 0))
    if config.get("do_sample") is False:
        defaults["temperature"] = 0.0
    return _bounded(defaults)


def _take(into: dict[str, Any], name: str, read: Any) -> None:
    try:
        value = read()
    except ClientError:
        return
    if value is not None:
        into[name] = value


def _given(body: fields.Body) -> dict[str, Any]:
    given: dict[str, Any] = {
        name: fields.number(body, name, low, high)
        for name, (low, high) in _NUMBERS.items()
    }
    given["top_k"] = fields.integer(body, "top_k", -1)
    given["min_tokens"] = fields.integer(body, "min_tokens", 0)
    given["logit_bias"] = _logit_bias(body)
    if body.get("ignore_eos") is not None:
        given["ignore_eos"] = fields.flag(body, "ignore_eos")
    return _bounded({k: v for k, v in given.items() if v is not None})


def _bounded(sampling: dict[str, Any]) -> dict[str, Any]:
    """Values that mean the same to the device, inside its integer widths; `resolve`
    refuses `min_tokens` that are too many."""
    if "top_k" in sampling:
        sampling["top_k"] = min(max(sampling["top_k"], 0), _GREATEST_INT32)
    for name in sampling.keys() & {"top_p", "typical_p"}:
        sampling[name] = max(sampling[name], _LEAST_MASS)
    return sampling


def _seed(value: object) -> int | None:
    """Any integer is one, as everywhere: seeds that differ by 2^64 are the same."""
    if value is None:
        return None
    if type(value) is not int:
        raise fields.invalid("seed", "an integer", value)
    return value % _NUM_SEEDS


def _logit_bias(body: fields.Body) -> tuple[tuple[int, float], ...] | None:
    biases = fields.mapping(body, "logit_bias")
    if len(biases) > MAX_BIASES:
        raise fields.invalid("logit_bias", f"at most {MAX_BIASES} entries", len(biases))
    pairs = [(_token_id(key), _bias(value)) for key, value in biases.items()]
    return tuple(pairs) or None


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) <= 9):
        raise fields.invalid("logit_bias", "an object with token ids as keys", key)
    return int(key)


def _bias(value: object) -> float:
    if type(value) not in (int, float) or not -100 <= value <= 100:  # type: ignore[operator]
        raise fields.invalid("logit_bias", "made of numbers from -100 to 100", value)
    return float(value)  # type: ignore[arg-type]


def _stops(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if type(value) is str else value
    if type(stops) is not list or len(stops) > MAX_STOPS:
        wanted = f"a string or an array of at most {MAX_STOPS} strings"
        raise fields.invalid("stop", wanted, value)
    for stop in stops:
        if type(stop) is not str or not 0 < len(stop) <= MAX_STOP_CHARS:
            wanted = f"made of strings of 1 to {MAX_STOP_CHARS} characters"
            raise fields.invalid("stop", wanted, stop)
    return tuple(dict.fromkeys(stops))


def _stop_token_ids(value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    if type(value) is not list or len(value) > MAX_STOP_IDS:
        wanted = f"an array of at most {MAX_STOP_IDS} token ids"
        raise fields.invalid("stop_token_ids", wanted, value)
    for token in value:
        if type(token) is not int or not 0 <= token <= _GREATEST_INT32:
            raise fields.invalid("stop_token_ids", "made of token ids", token)
    return tuple(dict.fromkeys(value))


def _check_known(name: str, tokens: Iterable[int], vocab_size: int) -> None:
    for token in tokens:
        if token >= vocab_size:
            wanted = f"made of token ids below {vocab_size}"
            raise fields.invalid(name, wanted, token)
