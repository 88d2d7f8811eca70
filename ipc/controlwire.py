"""What is said on control.sock, in frames of `ipc.frames`.

    → {id, op, args}                      id: chosen by the client, any integer
    ← {id, ok: {…}}  or  {id, error: wire of a ServiceError}
    → {id, op: "subscribe", args: {topics: […]}}
    ← {id, ok: {}}, then at once {topic, data: {…}} for each topic that has a value,
      then one more whenever it is published
    ← {id: nil, error: …}                 what came was no frame; then the end

Answers come in the order in which they are ready. An error is raised at the client as
the exception that was raised at the server, with its code and its causes.
"""

from __future__ import annotations

from typing import Any

from ipc.errors import PeerLost, ServiceError, from_wire

SUBSCRIBE = "subscribe"


class ControlClosed(PeerLost):
    """The daemon closed the connection, or what it sent makes no sense."""


def answer_of(frame: dict[str, Any]) -> dict[str, Any]:
    """The `ok` of an answer. Raises the error that it carries, ControlClosed."""
    if "error" in frame:
        raise _error_of(frame["error"])
    ok = frame.get("ok")
    if not isinstance(ok, dict):
        raise ControlClosed("the daemon sent an answer that makes no sense")
    return ok


def event_of(frame: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Topic and data; None when the frame is no event. Raises ControlClosed."""
    if "topic" not in frame:
        return None
    topic, data = frame["topic"], frame.get("data")
    if not isinstance(topic, str) or not isinstance(data, dict):
        raise ControlClosed("the daemon sent an event that makes no sense")
    return topic, data


def _error_of(wire: Any) -> ServiceError:
    try:
        return from_wire(wire)
    except (ValueError, TypeError):
        return ControlClosed("the daemon sent an error that makes no sense")
