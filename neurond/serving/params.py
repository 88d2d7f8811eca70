"""The chat completions body, field by field, and what it means for one model.

Pure; front end and gateway. `parse_chat` checks what can be known without the model,
`resolve` puts the model's window, vocabulary and generation defaults to it.

Order of precedence (S70): request > the model's generation_config.json > built-in.
Invariant: a field that would change the answer is honoured or refused by name; any
other unknown field is accepted. Clients send hosted-only fields all the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ipc.errors import ClientError
from ipc.messages import Sampling
from neurond.serving import fields
from neurond.serving.messages import Message, parse_messages

MAX_CHOICES = 16
MAX_STOPS = 16
MAX_STOP_CHARS = 1024
MAX_BIASES = 1024
MAX_MODEL_CHARS = 256

_NUMBERS = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 10.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
_GREATEST_INT32 = (1 << 31) - 1
_LEAST_TOP_P = 1e-6
"""A nucleus of nothing is no distribution; the client means "the best token only"."""

# Fields that would change the answer, with the values that ask for nothing.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "grammar": ("",),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "logprobs": (False,),
    "modalities": (["text"],),
    "prompt_logprobs": (),
    "response_format": ({"type": "text"},),
    "stop_token_ids": ([],),
    "structured_outputs": (),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "use_beam_search": (False,),
    "web_search_options": (),
}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat completions body whose every field is in range."""

    model: str
    messages: tuple[Message, ...]
    stream: bool
    include_usage: bool
    n: int
    stop: tuple[str, ...]
    max_tokens: int | None
    seed: int | None
    sampling: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What a model sets for its requests."""

    window: int
    vocab_size: int
    defaults: Mapping[str, Any]


def parse_chat(body: object) -> ChatRequest:
    """Raises ClientError naming the first field that can't be served."""
    if type(body) is not dict:
        raise ClientError("the body must be a JSON object")
    model = fields.text(body, "model", max_chars=MAX_MODEL_CHARS)
    if model is None:
        raise ClientError("model is required", param="model")
    _refuse_unsupported(body)
    options = fields.mapping(body, "stream_options")
    return ChatRequest(
        model=model,
        messages=parse_messages(body.get("messages")),
        stream=fields.flag(body, "stream"),
        include_usage=fields.flag(options, "include_usage"),
        n=fields.integer(body, "n", 1, MAX_CHOICES) or 1,
        stop=_stops(body.get("stop")),
        max_tokens=_max_tokens(body),
        seed=fields.integer(body, "seed", -(1 << 63), (1 << 63) - 1),
        sampling=_sampling(body),
    )


def resolve(
    request: ChatRequest, limits: ModelLimits, *, num_prompt: int
) -> tuple[Sampling, int]:
    """The sampling and the number of tokens that the device is asked for."""
    room = limits.window - num_prompt
    if room < 1:
        raise context_error(num_prompt, limits.window)
    max_tokens = min(request.max_tokens or room, room)
    sampling = Sampling(**{**limits.defaults, **request.sampling})
    for token, _ in sampling.logit_bias:
        if token >= limits.vocab_size:
            wanted = f"made of token ids below {limits.vocab_size}"
            raise fields.invalid("logit_bias", wanted, token)
    if sampling.min_tokens > max_tokens:
        wanted = f"at most max_tokens ({max_tokens})"
        raise fields.invalid("min_tokens", wanted, sampling.min_tokens)
    return sampling, max_tokens


def context_error(num_prompt: int, window: int) -> ClientError:
    """Agent clients compact their history on this one (S74)."""
    return ClientError(
        f"this model's maximum context length is {window} tokens, but the messages"
        f" have {num_prompt} tokens and an answer needs room; shorten the messages",
        code="context_length_exceeded",
        param="messages",
        fields={"prompt_len": num_prompt, "max": window},
    )


def generation_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling fields of a generation_config.json; a bad one counts as absent."""
    defaults: dict[str, Any] = {}
    for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
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


def _refuse_unsupported(body: fields.Body) -> None:
    for name in body.keys() & _HARMLESS.keys():
        value = body[name]
        if value is not None and value not in _HARMLESS[name]:
            raise ClientError(
                f"{name} is not supported for this model yet",
                code="unsupported_parameter",
                param=name,
            )


def _max_tokens(body: fields.Body) -> int | None:
    """The newer spelling wins (S67); above the window is clamped later."""
    older = fields.integer(body, "max_tokens", 1)
    newer = fields.integer(body, "max_completion_tokens", 1)
    return older if newer is None else newer


def _sampling(body: fields.Body) -> dict[str, Any]:
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
    """Values that mean the same to the device, inside its integer widths."""
    if "top_k" in sampling:
        sampling["top_k"] = min(max(sampling["top_k"], 0), _GREATEST_INT32)
    if "min_tokens" in sampling:
        sampling["min_tokens"] = min(sampling["min_tokens"], _GREATEST_INT32)
    if "top_p" in sampling:
        sampling["top_p"] = max(sampling["top_p"], _LEAST_TOP_P)
    return sampling


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
