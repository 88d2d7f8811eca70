"""The `messages` array of a chat body, normalised for a chat template.

Pure; front end and gateway. After this a message has a known role and a string as
content, which is what text-only templates are written for: null is "", text parts are
joined by newlines, tool arguments are objects (S64).

Invariant: nothing is dropped in silence; what can't be shown to the model is refused
with the path of the field (S71).
"""

from __future__ import annotations

from typing import Any

import msgspec

from ipc.errors import ClientError
from neurond.serving.fields import invalid

Message = dict[str, Any]

MAX_MESSAGES = 10_000
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_TEXT_PARTS = {"text": "text", "refusal": "refusal"}
_IMAGE_PARTS = ("image_url", "image", "input_image")
_KEPT_TEXTS = ("name", "tool_call_id", "reasoning_content")


def parse_messages(value: object) -> tuple[Message, ...]:
    if type(value) is not list or not value:
        raise invalid("messages", "an array with at least one message", value)
    if len(value) > MAX_MESSAGES:
        raise invalid("messages", f"at most {MAX_MESSAGES} long", len(value))
    return tuple([_message(item, f"messages[{i}]") for i, item in enumerate(value)])


def _message(item: object, path: str) -> Message:
    if type(item) is not dict:
        raise invalid(path, "an object", item)
    role = item.get("role")
    if type(role) is not str or role not in _ROLES:
        raise invalid(f"{path}.role", f"one of {', '.join(_ROLES)}", role)
    content = _content(item.get("content"), f"{path}.content")
    message: Message = {"role": _ROLES[role], "content": content}
    for name in _KEPT_TEXTS:
        if item.get(name) is not None:
            message[name] = _string(item[name], f"{path}.{name}")
    if item.get("tool_calls") is not None:
        message["tool_calls"] = _tool_calls(item["tool_calls"], f"{path}.tool_calls")
    return message


def _string(value: object, path: str) -> str:
    if type(value) is not str:
        raise invalid(path, "a string", value)
    return value


def _content(value: object, path: str) -> str:
    if value is None:
        return ""
    if type(value) is list:
        parts = [_part(part, f"{path}[{i}]") for i, part in enumerate(value)]
        return "\n".join(parts)
    if type(value) is not str:
        raise invalid(path, "a string, null or an array of parts", value)
    return value


def _part(part: object, path: str) -> str:
    if type(part) is not dict:
        raise invalid(path, "an object", part)
    kind = part.get("type")
    if type(kind) is str and kind in _TEXT_PARTS:
        field = _TEXT_PARTS[kind]
        return _string(part.get(field), f"{path}.{field}")
    if kind in _IMAGE_PARTS:
        raise ClientError(
            "this model takes no images",
            code="vision_unsupported",
            param=f"{path}.type",
        )
    raise invalid(f"{path}.type", "text", kind)


def _tool_calls(value: object, path: str) -> list[dict[str, Any]]:
    if type(value) is not list:
        raise invalid(path, "an array", value)
    return [_tool_call(call, f"{path}[{i}]") for i, call in enumerate(value)]


def _tool_call(call: object, path: str) -> dict[str, Any]:
    function = call.get("function") if type(call) is dict else None
    if type(call) is not dict or type(function) is not dict:
        raise invalid(path, "an object with a function", call)
    name = _string(function.get("name"), f"{path}.function.name")
    arguments = _arguments(function.get("arguments"), f"{path}.function.arguments")
    known: dict[str, Any] = {"function": {"name": name, "arguments": arguments}}
    if call.get("id") is not None:
        known["id"] = _string(call["id"], f"{path}.id")
    return {"type": "function", **known}


def _arguments(value: object, path: str) -> Any:
    """Clients send a JSON string or the object itself; templates want the object."""
    if value is None or value == "":
        return {}
    if type(value) is dict:
        return value
    if type(value) is not str:
        raise invalid(path, "an object or JSON text", value)
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return value  # a model wrote it: show it as it was written
