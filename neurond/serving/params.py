"""The chat completions body, field by field.

Pure; front end and gateway. The fields that say how tokens are drawn are in `sampling`.

Invariant: a field that would change the answer is honoured or refused by name; any
other unknown field is accepted. Clients send hosted-only fields all the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ipc.errors import ClientError
from neurond.serving import fields
from neurond.serving.messages import Message, parse_messages
from neurond.serving.sampling import MAX_TOP_LOGPROBS, SamplingRequest, parse_sampling
from neurond.serving.structured import Grammar, ending, parse_structured
from neurond.serving.tools import ToolRequest, parse_tools

MAX_MODEL_CHARS = 256

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
    "guided_whitespace_pattern": ("",),
    "modalities": (["text"],),
    "prompt_logprobs": (),
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
    sampling: SamplingRequest
    tools: ToolRequest
    grammar: Grammar | None
    """The shape of the answer, a forced call's included."""


def parse_chat(body: object) -> ChatRequest:
    """Raises ClientError naming the first field that can't be served."""
    if type(body) is not dict:
        raise ClientError("the body must be a JSON object")
    model = fields.text(body, "model", max_chars=MAX_MODEL_CHARS)
    if model is None:
        raise ClientError("model is required", param="model")
    fields.refuse_unsupported(body, _HARMLESS)
    options = fields.mapping(body, "stream_options")
    tools = parse_tools(body)
    return ChatRequest(
        model=model,
        messages=parse_messages(body.get("messages")),
        stream=fields.flag(body, "stream"),
        include_usage=fields.flag(options, "include_usage"),
        sampling=parse_sampling(
            body, max_tokens=_max_tokens(body), logprobs=_logprobs(body)
        ),
        tools=tools,
        grammar=_grammar(body, tools),
    )


def _max_tokens(body: fields.Body) -> int | None:
    """The newer spelling wins (S67); above the window is clamped later."""
    older = fields.integer(body, "max_tokens", 1)
    newer = fields.integer(body, "max_completion_tokens", 1)
    return older if newer is None else newer


def _grammar(body: fields.Body, tools: ToolRequest) -> Grammar | None:
    """`response_format` is about content, of which a forced call has none."""
    shape = parse_structured(body)
    if tools.grammar is None:
        return shape
    if shape is None:
        return ending(body, tools.grammar)
    if not shape.param.startswith("response_format"):
        words = f"{shape.param} and a forced tool call exclude each other"
        raise ClientError(words, param=shape.param)
    return tools.grammar


def _logprobs(body: fields.Body) -> int:
    """As `Sampling.logprobs` has it: -1 none, 0 the token's own, k the best k too."""
    asked = fields.flag(body, "logprobs")
    num_top = fields.integer(body, "top_logprobs", 0, MAX_TOP_LOGPROBS)
    if num_top and not asked:
        raise ClientError("top_logprobs needs logprobs: true", param="top_logprobs")
    return (num_top or 0) if asked else -1
