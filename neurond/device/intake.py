"""The cheap checks that the device repeats on every Submit, whoever sent it.

Device process, torch-free, pure. Nothing that gets past here can index outside the
embedding or the cache; whatever the front end forgot is refused as a client's error and
not met inside a forward, where it would cost the device.
"""

from __future__ import annotations

import math

from ipc.errors import ClientError, ServiceError, error_for
from ipc.messages import Sampling, Submit
from neurond.device.backend import Resident

_RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "repetition_penalty": (1e-3, 100.0),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
}

_MAX_TOP = 20
_MAX_STOP_IDS = 1024


def check(submit: Submit, model: Resident, window: int) -> None:
    """Raises ClientError when the model could not run this.

    `window` is how many tokens of one sequence the model and the memory take.
    """
    _check_kind(submit, model)
    _check_counts(submit)
    _check_ids(submit.ids, model.vocab_size)
    _check_length(submit, model.context, window)
    _check_stop_ids(submit.stop_ids, model.vocab_size)
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
    least = 0 if submit.embed or submit.sampling.prompt_logprobs >= 0 else 1
    if submit.max_tokens < least:
        raise ClientError("max_tokens must be at least 1", param="max_tokens")


def _check_ids(ids: tuple[int, ...], vocab_size: int) -> None:
    if min(ids) < 0 or max(ids) >= vocab_size:
        raise ClientError(f"a token id is outside the vocabulary of {vocab_size}")


def _check_length(submit: Submit, context: int, window: int) -> None:
    # a resumed request may have filled the context
    if submit.num_prompt > _most_prompt(submit, window) or len(submit.ids) > context:
        raise too_long(submit, window)


def _most_prompt(submit: Submit, window: int) -> int:
    """Room for one token is left, unless nothing is to be written behind."""
    return window if submit.embed or submit.max_tokens == 0 else window - 1


def too_long(submit: Submit, window: int) -> ServiceError:
    """How to refuse what can never fit (S26)."""
    most = max(0, _most_prompt(submit, window))
    if most == 0:
        message = "the device has no memory left for any prompt of this model"
        return error_for("prompt_too_long_for_vram", message)
    return error_for(
        "context_length_exceeded",
        f"the prompt has {submit.num_prompt} tokens, the model takes {most}",
        param="messages",
        fields={"prompt_len": submit.num_prompt, "max": most},
    )


def _check_sampling(sampling: Sampling, vocab_size: int) -> None:
    for name, (low, high) in _RANGES.items():
        value = getattr(sampling, name)
        if not low <= value <= high:  # NaN compares false
            raise ClientError(f"{name} must be in [{low:g}, {high:g}]", param=name)
    for name in ("logprobs", "prompt_logprobs"):
        if not -1 <= getattr(sampling, name) <= _MAX_TOP:
            raise ClientError(f"{name} must be in [-1, {_MAX_TOP}]", param=name)
    for token, bias in sampling.logit_bias:
        if not 0 <= token < vocab_size or not math.isfinite(bias):
            raise ClientError("logit_bias names no such token", param="logit_bias")


def _check_stop_ids(stop_ids: tuple[int, ...], vocab_size: int) -> None:
    if len(stop_ids) > _MAX_STOP_IDS:
        raise ClientError(f"at most {_MAX_STOP_IDS} stop ids", param="stop")
    if any(not 0 <= token < vocab_size for token in stop_ids):
        raise ClientError("a stop id is no token of the model", param="stop")


def _check_supported(submit: Submit) -> None:
    if submit.embed and (submit.grammar or submit.sampling.prompt_logprobs >= 0):
        raise error_for("wrong_modality", "a vector has neither grammar nor scores")
    if submit.slabs:
        raise error_for("vision_unsupported", "the model takes no images")
