"""What the gateway reads of a body: the model and whether it is to be streamed.

Gateway worker; pure. Everything else is the node's to check, and goes there as it came.
Only a name that is an alias is replaced, and only it.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from ipc.errors import ClientError
from neurond.serving.body import parse

MAX_NAME_LENGTH = 256


class _Fields(msgspec.Struct):
    model: str
    stream: bool | None = None


_decode = msgspec.json.Decoder(_Fields).decode
_decode_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


@dataclass(frozen=True, slots=True)
class Peek:
    model: str
    stream: bool
    body: bytes

    def body_for(self, model_id: str) -> bytes:
        """The body as the node that knows the model by `model_id` needs it."""
        if model_id == self.model:
            return self.body
        fields = _decode_raw(self.body)
        fields["model"] = msgspec.Raw(msgspec.json.encode(model_id))
        return msgspec.json.encode(fields)


def peek(body: bytes) -> Peek:
    """Raises ClientError, with the position or the name of the field."""
    try:
        fields = _decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise _complaint(parse(body)) from error
    if not 0 < len(fields.model) <= MAX_NAME_LENGTH:
        words = f"model must have 1 to {MAX_NAME_LENGTH} characters"
        raise ClientError(words, param="model")
    return Peek(fields.model, bool(fields.stream), body)


def _complaint(document: object) -> ClientError:
    """It is JSON, but not what a request is."""
    if not isinstance(document, dict):
        return ClientError("the body must be a JSON object")
    if not isinstance(document.get("model"), str):
        return ClientError("model: a name is required", param="model")
    if not isinstance(document.get("stream"), bool | None):
        return ClientError("stream must be true or false", param="stream")
    return ClientError("the body can't be read")
