"""The bodies of /tokenize and /detokenize, and what a tokenizer answers to them.

Pure; front end. The shapes are those that other servers of open models have: a text or
messages in, ids out, and back.

In `messages` special tokens are text (S76). A raw `prompt` is the model's own language,
as it is in /v1/completions: there they are what they say.

Invariant: no id reaches a tokenizer that its vocabulary doesn't have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ipc.errors import ClientError, error_for
from neurond.serving import fields
from neurond.serving.library import ServedModel
from neurond.serving.messages import Message, parse_messages
from neurond.serving.params import MAX_MODEL_CHARS
from neurond.serving.tools import Tool, parse_tools

MAX_TEXT_BYTES = 2 << 20
"""A tokenizer takes up to 150 bytes of memory for each."""
MAX_IDS = 1 << 18
_NO_WINDOW = 1 << 40
_LIMIT_S = 5.0
_TEMPLATE_FIELDS = ("chat_template", "chat_template_kwargs", "continue_final_message")


@dataclass(frozen=True, slots=True)
class TokenizeRequest:
    """`prompt` is None where messages were sent."""

    model: str
    prompt: str | None
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    add_generation_prompt: bool
    add_special_tokens: bool
    wants_texts: bool
    num_bytes: int


@dataclass(frozen=True, slots=True)
class DetokenizeRequest:
    model: str
    ids: tuple[int, ...]


def parse_tokenize(body: object) -> TokenizeRequest:
    """Raises ClientError naming the first field that is wrong."""
    document = _object(body)
    has_prompt = document.get("prompt") is not None
    has_messages = document.get("messages") is not None
    if has_prompt == has_messages:
        words = "either prompt or messages is required, and not both"
        raise ClientError(words, param="prompt")
    prompt = _prompt(document["prompt"]) if has_prompt else None
    tools = _tools(document) if has_messages else ()
    _refuse_unsupported(document, has_messages=has_messages)
    messages = () if has_prompt else parse_messages(document["messages"])
    return TokenizeRequest(
        model=_model(document),
        prompt=prompt,
        messages=messages,
        tools=tools,
        add_generation_prompt=fields.flag(
            document, "add_generation_prompt", default=True
        ),
        add_special_tokens=fields.flag(
            document, "add_special_tokens", default=has_prompt
        ),
        wants_texts=fields.flag(document, "return_token_strs"),
        num_bytes=_checked_size(prompt, (*messages, *tools)),
    )


def parse_detokenize(body: object) -> DetokenizeRequest:
    """Raises ClientError naming the first field that is wrong."""
    document = _object(body)
    model, value = _model(document), document.get("tokens")
    if type(value) is not list:
        raise fields.invalid("tokens", "an array of token ids", value)
    if len(value) > MAX_IDS:
        raise fields.invalid("tokens", f"at most {MAX_IDS} long", len(value))
    return DetokenizeRequest(model, checked_ids(value, "tokens"))


def checked_ids(value: Sequence[object], name: str) -> tuple[int, ...]:
    """Raises ClientError naming the first element that is no id."""
    for index, item in enumerate(value):
        if type(item) is not int or item < 0:
            raise fields.invalid(f"{name}[{index}]", "a token id", item)
    return tuple(value)  # type: ignore[arg-type]  # each was looked at


def check_vocabulary(ids: Sequence[int], vocab_size: int, name: str) -> None:
    """Raises ClientError naming the first id that the model doesn't have."""
    if ids and max(ids) >= vocab_size:
        index = next(i for i, token in enumerate(ids) if token >= vocab_size)
        wanted = f"a token id below {vocab_size}"
        raise fields.invalid(f"{name}[{index}]", wanted, ids[index])


def tokenized(request: TokenizeRequest, served: ServedModel, window: int) -> bytes:
    """The answer. Blocking for a long text. Raises ClientError."""
    tokenizer = served.tokenizer
    if request.prompt is None:
        ids = list(_chat_ids(request, served))
    else:
        special = request.add_special_tokens
        ids = tokenizer.encode_text(request.prompt, add_special_tokens=special)
    texts = [tokenizer.name(token) for token in ids] if request.wants_texts else None
    return msgspec.json.encode(
        {
            "count": len(ids),
            "max_model_len": window or None,
            "tokens": ids,
            "token_strs": texts,
        }
    )


def _chat_ids(request: TokenizeRequest, served: ServedModel) -> tuple[int, ...]:
    """As a chat would have them, however many. Raises ClientError."""
    return served.prompt_ids(
        request.messages,
        request.tools,
        window=_NO_WINDOW,
        limit_s=_LIMIT_S,
        add_generation_prompt=request.add_generation_prompt,
    )


def detokenized(request: DetokenizeRequest, served: ServedModel) -> bytes:
    """The answer. Raises ClientError for an id that the model doesn't have."""
    check_vocabulary(request.ids, served.tokenizer.vocab_size, "tokens")
    return msgspec.json.encode({"prompt": served.tokenizer.decode(request.ids)})


def _object(body: object) -> dict[str, Any]:
    if type(body) is not dict:
        raise ClientError("the body must be a JSON object")
    return body


def _model(body: fields.Body) -> str:
    model = fields.text(body, "model", max_chars=MAX_MODEL_CHARS)
    if model is None:
        raise ClientError("model is required", param="model")
    return model


def _prompt(value: object) -> str:
    if type(value) is not str:
        raise fields.invalid("prompt", "a string", value)
    return value


def _tools(body: fields.Body) -> tuple[Tool, ...]:
    """Counted whatever the choice among them: a template shows them all the same."""
    if not body.get("tools"):
        return ()
    return parse_tools({"tools": body["tools"], "tool_choice": "required"}).offered


def _refuse_unsupported(body: fields.Body, *, has_messages: bool) -> None:
    asked = [name for name in _TEMPLATE_FIELDS if body.get(name)]
    if has_messages and body.get("add_special_tokens"):
        asked.append("add_special_tokens")  # the template writes them
    if asked:
        words = f"{asked[0]} is not supported here"
        raise error_for("unsupported_parameter", words, param=asked[0])


def _checked_size(prompt: str | None, others: Sequence[object]) -> int:
    """Bytes of all texts. Raises ClientError."""
    name = "messages" if prompt is None else "prompt"
    texts = others if prompt is None else [prompt]
    num_bytes = sum([len(msgspec.json.encode(text)) for text in texts])
    if num_bytes > MAX_TEXT_BYTES:
        raise fields.invalid(name, f"at most {MAX_TEXT_BYTES} bytes long", num_bytes)
    return num_bytes
