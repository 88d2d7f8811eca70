"""The body of /v1/embeddings, the ids of its inputs, and the answer.

Pure; front end. An input is a text or the model's own token ids; each becomes one
sequence, computed whole. In a text special tokens are text (S76); what the model wants
around every text, its tokenizer adds.

Invariant: nothing is cut: an input over the window is refused by its place, and fewer
dimensions are given only by models that were trained for it.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from ipc.errors import ClientError, ServiceError, error_for
from neurond.serving import fields
from neurond.serving.params import MAX_MODEL_CHARS
from neurond.serving.tokenizer import Tokenizer

MAX_INPUTS = 2048
MAX_TOKENS = 300_000
_MAX_CHARS_PER_TOKEN = 256
"""Encoders take 150 bytes of memory per token: what can't fit isn't encoded."""
_SLICE_TEXTS = 64
_FORMATS = ("float", "base64")

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """`inputs` are all texts or all ids; `is_single`: the body held a bare one."""

    model: str
    inputs: tuple[str, ...] | tuple[Ids, ...]
    is_single: bool
    as_base64: bool
    dimensions: int | None

    @property
    def num_chars(self) -> int:
        return sum([len(item) for item in self.inputs if type(item) is str])

    def path(self, index: int) -> str:
        return "input" if self.is_single else f"input[{index}]"


def parse_embeddings(body: object) -> EmbeddingRequest:
    """Raises ClientError naming the first field that can't be served."""
    if type(body) is not dict:
        raise ClientError("the body must be a JSON object")
    model = fields.text(body, "model", max_chars=MAX_MODEL_CHARS)
    if model is None:
        raise ClientError("model is required", param="model")
    wanted = body.get("encoding_format")
    if wanted is not None and wanted not in _FORMATS:
        raise fields.invalid("encoding_format", " or ".join(_FORMATS), wanted)
    inputs, is_single = _inputs(body.get("input"))
    return EmbeddingRequest(
        model=model,
        inputs=inputs,
        is_single=is_single,
        as_base64=wanted == "base64",
        dimensions=fields.integer(body, "dimensions", 1),
    )


def check_dimensions(
    asked: int | None, dimensions: int, *, may_cut: bool
) -> int | None:
    """How many to keep, None for all. Raises ClientError."""
    if asked is None or asked == dimensions:
        return None
    if not may_cut:
        raise ClientError(
            f"dimensions is not supported: this model's vectors have {dimensions},"
            " and cutting them would make them worthless",
            code="unsupported_parameter",
            param="dimensions",
        )
    if asked > dimensions:
        raise fields.invalid("dimensions", f"at most {dimensions}", asked)
    return asked


def input_ids(
    request: EmbeddingRequest, tokenizer: Tokenizer, *, window: int
) -> list[Ids]:
    """The ids of each input. Blocking for long ones. Raises ClientError."""
    found: list[Ids] = []
    num_tokens = 0
    for start in range(0, len(request.inputs), _SLICE_TEXTS):
        part = request.inputs[start : start + _SLICE_TEXTS]
        for ids in _encoded(request, part, start, tokenizer, window):
            if len(ids) > window:
                raise _too_long(request, len(found), len(ids), window)
            found.append(ids)
            num_tokens += len(ids)
        if num_tokens > MAX_TOKENS:
            wanted = f"at most {MAX_TOKENS} tokens in all"
            raise fields.invalid("input", wanted, num_tokens)
    return found


def vector_json(values: bytes, *, dimensions: int | None, as_base64: bool) -> bytes:
    """A vector of little-endian float32 as the client wants it, as JSON.

    One that is cut is brought back to a length of one.
    """
    vector = np.frombuffer(values, dtype="<f4")
    if dimensions is not None:
        kept = vector[:dimensions]
        vector = (kept / (np.linalg.norm(kept) or 1.0)).astype("<f4")
    if as_base64:
        return b'"%b"' % base64.b64encode(vector.tobytes())
    return msgspec.json.encode(vector.tolist())


def answer(model: str, vectors: Sequence[bytes], num_tokens: int) -> bytes:
    """The whole body; `vectors` as `vector_json` gives them, in order."""
    data = b",".join(
        b'{"object":"embedding","index":%d,"embedding":%b}' % item
        for item in enumerate(vectors)
    )
    return b'{"object":"list","data":[%b],"model":%b,"usage":%b}' % (
        data,
        msgspec.json.encode(model),
        msgspec.json.encode({"prompt_tokens": num_tokens, "total_tokens": num_tokens}),
    )


def _inputs(value: object) -> tuple[tuple[str, ...] | tuple[Ids, ...], bool]:
    """A text, texts, ids, or several lists of ids."""
    if type(value) is str:
        return (_text(value, "input"),), True
    if type(value) is not list or not value:
        wanted = "a text, token ids, or an array of either, and not empty"
        raise fields.invalid("input", wanted, value)
    if type(value[0]) is int:
        return (_ids(value, "input"),), True
    if len(value) > MAX_INPUTS:
        raise fields.invalid("input", f"at most {MAX_INPUTS} long", len(value))
    if type(value[0]) is list:
        return tuple([_ids(v, f"input[{i}]") for i, v in enumerate(value)]), False
    return tuple([_text(v, f"input[{i}]") for i, v in enumerate(value)]), False


def _text(value: object, path: str) -> str:
    if type(value) is not str or not value:
        raise fields.invalid(path, "a text that is not empty", value)
    return value


def _ids(value: object, path: str) -> Ids:
    if type(value) is not list or not value:
        raise fields.invalid(path, "an array of token ids, and not empty", value)
    for index, token in enumerate(value):
        if type(token) is not int or token < 0:
            raise fields.invalid(f"{path}[{index}]", "a token id", token)
    return tuple(value)


def _encoded(
    request: EmbeddingRequest,
    part: Sequence[str | Ids],
    start: int,
    tokenizer: Tokenizer,
    window: int,
) -> list[Ids]:
    texts = [item for item in part if type(item) is str]
    for index, item in enumerate(part, start):
        if type(item) is str and len(item) > window * _MAX_CHARS_PER_TOKEN:
            about = -(-len(item) // _MAX_CHARS_PER_TOKEN)
            raise _too_long(request, index, about, window, words="about ")
        if type(item) is tuple:
            _check_known(item, tokenizer.vocab_size, request.path(index))
    if texts:
        return [tuple(ids) for ids in tokenizer.encode_texts(texts)]
    return [item for item in part if type(item) is tuple]


def _check_known(ids: Ids, vocab_size: int, path: str) -> None:
    greatest = max(ids)
    if greatest >= vocab_size:
        wanted = f"made of token ids below {vocab_size}"
        raise fields.invalid(path, wanted, greatest)


def _too_long(
    request: EmbeddingRequest,
    index: int,
    num_tokens: int,
    window: int,
    *,
    words: str = "",
) -> ServiceError:
    """`words` stand before a number that was not counted."""
    path = request.path(index)
    return error_for(
        "context_length_exceeded",
        f"this model takes {window} tokens, but {path} has {words}{num_tokens}",
        param=path,
        fields={"prompt_len": num_tokens, "max": window},
    )
