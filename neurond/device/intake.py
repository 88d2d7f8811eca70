"""The cheap checks that the device repeats on every Submit, whoever sent it.

Device process, torch-free, pure. Nothing that gets past here can index outside the
embedding or the cache; whatever the front end forgot is refused as a client's error and
not met inside a forward, where it would cost the device.
"""

from __future__ import annotations

import math

from ipc.errors import ClientError, error_for
from ipc.messages import Sampling, Submit
from neurond.device.backend import Resident

_RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-3, 100.0),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
}


def check(submit: Submit, model: Resident) -> None:
    """Raises ClientError when the model could not run this."""
    _check_kind(submit, model)
    _check_counts(submit)
    _check_ids(submit.ids, model.vocab_size)
    _check_length(submit, model.context)
    _check_sampling(submit.sampling, model.vocab_size)
    _check_supported(submit)


def _check_kind(submit: Submit, model: Resident) -> None:
    gives_vectors = model.info.get("kind") == "embedding"
    if submit.embed is not gives_vectors:
        does = "gives embeddings" if gives_vectors else "writes text"
        raise error_for("wrong_modality", f"the model {does}", param="model")


def _check_counts(submit: Submit) -> None:
    if not 1 <= submit.num_prompt <= len(submit.ids):
        raise ClientError("the prompt has no tokens", param="messages")
    if submit.max_tokens < 1 and not submit.embed:
        raise ClientError("max_tokens must be at least 1", param="max_tokens")


def _check_ids(ids: tuple[int, ...], vocab_size: int) -> None:
    if min(ids) < 0 or max(ids) >= vocab_size:
        raise ClientError(f"a token id is outside the vocabulary of {vocab_size}")


def _check_length(submit: Submit, context: int) -> None:
    # a prompt must leave room for one token; a resumed one may have used it, and
    # nothing is written behind a text that becomes a vector
    window = context if submit.embed else context - 1
    if submit.num_prompt <= window and len(submit.ids) <= context:
        return
    raise error_for(
        "context_length_exceeded",
        f"the prompt has {submit.num_prompt} tokens, the model takes {window}",
        param="messages",
        fields={"prompt_len": submit.num_prompt, "max": window},
    )


def _check_sampling(sampling: Sampling, vocab_size: int) -> None:
    for name, (low, high) in _RANGES.items():
        value = getattr(sampling, name)
        if not low <= value <= high:  # NaN compares false
            raise ClientError(f"{name} must be in [{low:g}, {high:g}]", param=name)
    for token, bias in sampling.logit_bias:
        if not 0 <= token < vocab_size or not math.isfinite(bias):
            raise ClientError("logit_bias names no such token", param="logit_bias")


def _check_supported(submit: Submit) -> None:
    if submit.grammar:
        raise error_for(
            "unsupported_parameter",
            "structured output is not supported for this model",
            param="response_format",
        )
    if submit.slabs:
        raise error_for("vision_unsupported", "the model takes no images")
