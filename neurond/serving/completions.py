"""The text completions body, field by field, and its prompts as ids.

Pure; front end and gateway. The older dialect: raw prompts, several at once, and the
answer may begin with the prompt. Sampling fields are those of a chat.

Invariant: a field that would change the answer is honoured or refused by name; no id
outside the model's vocabulary gets past `encoded`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ipc.errors import ClientError
from neurond.serving import fields
from neurond.serving.library import ServedModel
from neurond.serving.params import MAX_MODEL_CHARS
from neurond.serving.sampling import (
    MAX_TOP_LOGPROBS,
    SamplingRequest,
    context_error,
    parse_sampling,
)
from neurond.serving.structured import Grammar, parse_structured
from neurond.serving.tokens import check_vocabulary, checked_ids

MAX_SEQUENCES = 64
MAX_SCORES = 1 << 18
MAX_STREAMED_SCORES = 1 << 16
"""Of all prompts together; each is an entry of some list in the answer. Those of a
stream are written between the frames of others."""
_MAX_TOKENS = 16
"""The dialect's own default."""

Prompt = str | tuple[int, ...]

# Fields that would change the answer, with the values that ask for nothing.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "grammar": ("",),
    "guided_whitespace_pattern": ("",),
    "include_stop_str_in_output": (False,),
    "prompt_embeds": (),
    "skip_special_tokens": (True,),
    "suffix": ("",),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A completions body whose every field is in range.

    `logprobs` and `prompt_logprobs` are -1 where nothing of the kind was asked for.
    """

    model: str
    prompts: tuple[Prompt, ...]
    echo: bool
    logprobs: int
    prompt_logprobs: int
    add_special_tokens: bool
    stream: bool
    include_usage: bool
    sampling: SamplingRequest
    grammar: Grammar | None

    @property
    def num_chars(self) -> int:
        return sum(map(len, self.prompts))

    def place(self, index: int) -> str:
        """What a prompt is called in a refusal."""
        return "prompt" if len(self.prompts) == 1 else f"prompt[{index}]"

    def check_scores(self, num_ids: int) -> int:
        """Scores of prompts of so many tokens. Raises ClientError: too many."""
        num_top: int = self.sampling.given.get("prompt_logprobs", -1)
        num_scores = (1 + num_top) * num_ids * self.sampling.n
        limit = MAX_STREAMED_SCORES if self.stream else MAX_SCORES
        if num_scores > limit:
            name = "logprobs" if self.prompt_logprobs < 0 else "prompt_logprobs"
            words = (
                f"{name} of these prompts would be {num_scores} figures,"
                f" {limit} at most; ask for fewer, or send less at once"
            )
            raise ClientError(words, param=name)
        return num_scores


def parse_completion(body: object) -> CompletionRequest:
    """Raises ClientError naming the first field that can't be served."""
    if type(body) is not dict:
        raise ClientError("the body must be a JSON object")
    model = fields.text(body, "model", max_chars=MAX_MODEL_CHARS)
    if model is None:
        raise ClientError("model is required", param="model")
    fields.refuse_unsupported(body, _HARMLESS)
    prompts, stream = _prompts(body.get("prompt")), fields.flag(body, "stream")
    logprobs, scored = _logprobs(body), _prompt_logprobs(body, stream=stream)
    echo = fields.flag(body, "echo")
    max_tokens = _max_tokens(body, may_be_none=echo or scored >= 0)
    # a device that is to emit nothing has the prompt scored
    least = logprobs if echo else -1
    sampling = parse_sampling(
        body,
        max_tokens=max_tokens,
        logprobs=logprobs,
        prompt_logprobs=max(scored, least, -1 if max_tokens else 0),
    )
    _check_counts(body, sampling.n, len(prompts))
    return CompletionRequest(
        model=model,
        prompts=prompts,
        echo=echo,
        logprobs=logprobs,
        prompt_logprobs=scored,
        add_special_tokens=fields.flag(body, "add_special_tokens", default=True),
        stream=stream,
        include_usage=fields.flag(
            fields.mapping(body, "stream_options"), "include_usage"
        ),
        sampling=sampling,
        grammar=parse_structured(body),
    )


def encoded(
    request: CompletionRequest, served: ServedModel, window: int
) -> list[tuple[int, ...]]:
    """The ids of each prompt. Blocking for long ones. Raises ClientError."""
    return [
        _ids(
            prompt,
            served,
            window,
            name=request.place(index),
            add_special_tokens=request.add_special_tokens,
        )
        for index, prompt in enumerate(request.prompts)
    ]


def _ids(
    prompt: Prompt,
    served: ServedModel,
    window: int,
    *,
    name: str,
    add_special_tokens: bool,
) -> tuple[int, ...]:
    tokenizer = served.tokenizer
    if not isinstance(prompt, str):
        check_vocabulary(prompt, tokenizer.vocab_size, name)
        return prompt
    # as in a chat: a text that can't fit is not encoded, which takes much memory
    num_least = -(-len(prompt) // tokenizer.max_piece_chars)
    if num_least > window:
        raise context_error(num_least, window, param=name, is_least=True)
    ids = tokenizer.encode_text(prompt, add_special_tokens=add_special_tokens)
    if not ids and tokenizer.bos_id is not None:
        return (tokenizer.bos_id,)
    if not ids:
        raise ClientError(f"{name} is empty", param=name)
    return tuple(ids)


def _prompts(value: object) -> tuple[Prompt, ...]:
    """A text, several, ids, or several lists of ids."""
    if type(value) is str:
        return (value,)
    if type(value) is not list or not value:
        wanted = "a string, an array of strings, of token ids or of arrays of those"
        raise fields.invalid("prompt", wanted, value)
    if type(value[0]) is int:
        return (checked_ids(value, "prompt"),)
    if len(value) > MAX_SEQUENCES:
        raise fields.invalid("prompt", f"at most {MAX_SEQUENCES} prompts", len(value))
    return tuple([_one_of(prompt, f"prompt[{i}]") for i, prompt in enumerate(value)])


def _one_of(value: object, name: str) -> Prompt:
    if type(value) is str:
        return value
    if type(value) is not list or not value:
        raise fields.invalid(name, "a string or an array of token ids", value)
    return checked_ids(value, name)


def _logprobs(body: fields.Body) -> int:
    """A number here, where a chat has a flag; `false` is what some clients send."""
    if body.get("logprobs") is False:
        return -1
    num_top = fields.integer(body, "logprobs", 0, MAX_TOP_LOGPROBS)
    return -1 if num_top is None else num_top


def _prompt_logprobs(body: fields.Body, *, stream: bool) -> int:
    num_top = fields.integer(body, "prompt_logprobs", 0, MAX_TOP_LOGPROBS)
    if num_top is None:
        return -1
    if stream:
        words = "prompt_logprobs come with a whole answer only, not with stream"
        raise ClientError(words, param="prompt_logprobs")
    return num_top


def _max_tokens(body: fields.Body, *, may_be_none: bool) -> int:
    """The newer spelling wins (S67). 0: the prompt alone is wanted."""
    least = 0 if may_be_none else 1
    older = fields.integer(body, "max_tokens", least)
    newer = fields.integer(body, "max_completion_tokens", least)
    given = older if newer is None else newer
    return _MAX_TOKENS if given is None else given


def _check_counts(body: fields.Body, n: int, num_prompts: int) -> None:
    """Raises ClientError."""
    best_of = fields.integer(body, "best_of", 1)
    if best_of is not None and best_of != n:
        words = f"best_of must be n ({n}): no answer is made that isn't given"
        raise ClientError(words, param="best_of")
    if n * num_prompts > MAX_SEQUENCES:
        wanted = f"at most {MAX_SEQUENCES} for all prompts together"
        raise fields.invalid("n", wanted, n * num_prompts)
