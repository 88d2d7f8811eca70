"""Every error of the system, as data, and the exceptions that carry one.

Used by every process. The table is the single source for HTTP statuses and dialects,
`cortexctl explain`, journal fields and the documentation. An exception is typed by who
must act (client, capacity, host, device, peer) and keeps type, code and cause chain
across process borders: it travels as the positional list of `to_wire`.

Invariant: a client's mistake is never a 5xx; every 429 and 503 carries Retry-After.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """One error as clients and operators meet it.

    `code` is the API code, `ref` the stable id of CLI, journal and docs, `kind` who
    must act, `next_command` what the operator types next.
    """

    code: str
    ref: str
    status: int
    kind: str
    openai_type: str
    anthropic_type: str
    cause: str
    next_command: str
    retry_after_s: int | None = None


_INVALID = ("invalid_request_error", "invalid_request_error")
_SERVER = ("server_error", "api_error")
_BUSY = ("server_error", "overloaded_error")


def _row(  # noqa: PLR0913  a table row is as wide as its table
    code: str,
    ref: str,
    status: int,
    kind: str,
    types: tuple[str, str],
    cause: str,
    next_command: str,
    retry_after_s: int | None = None,
) -> ErrorRow:
    return ErrorRow(code, ref, status, kind, *types, cause, next_command, retry_after_s)


_ROWS = (
    _row("invalid_request_error", "CX-REQ-INVALID", 400, "client", _INVALID,
         "the request has a field that is missing, misspelt or out of range",
         "cortexctl explain CX-REQ-INVALID"),
    _row("invalid_json", "CX-REQ-JSON", 400, "client", _INVALID,
         "the body is not valid JSON, or was cut off before its announced length",
         "cortexctl explain CX-REQ-JSON"),
    _row("context_length_exceeded", "CX-REQ-CONTEXT", 400, "client", _INVALID,
         "the prompt has more tokens than the model's window as served",
         "cortexctl models"),
    _row("unsupported_parameter", "CX-REQ-UNSUPPORTED", 400, "client", _INVALID,
         "the field would change the answer and is not supported for this model",
         "cortexctl models"),
    _row("vision_unsupported", "CX-REQ-VISION", 400, "client", _INVALID,
         "an image was sent to a model without a vision tower",
         "cortexctl models"),
    _row("invalid_image", "CX-REQ-IMAGE", 400, "client", _INVALID,
         "the image can't be decoded within the limits",
         "cortexctl explain CX-REQ-IMAGE"),
    _row("invalid_api_key", "CX-AUTH-KEY", 401, "client",
         ("authentication_error", "authentication_error"),
         "no key, or one that is not known here", "cortexctl explain CX-AUTH-KEY"),
    _row("insufficient_permissions", "CX-AUTH-PERMISSION", 403, "client",
         ("permission_error", "permission_error"),
         "the key may not do this", "cortexctl explain CX-AUTH-PERMISSION"),
    _row("model_not_found", "CX-MODEL-UNKNOWN", 404, "client",
         ("invalid_request_error", "not_found_error"),
         "no node has this model or could load it", "cortexctl models"),
    _row("not_found", "CX-ROUTE-UNKNOWN", 404, "client",
         ("invalid_request_error", "not_found_error"),
         "there is no such path or object", "cortexctl explain CX-ROUTE-UNKNOWN"),
    _row("method_not_allowed", "CX-ROUTE-METHOD", 405, "client", _INVALID,
         "the path exists, the method does not",
         "cortexctl explain CX-ROUTE-METHOD"),
    _row("version_conflict", "CX-NODE-CONFLICT", 412, "client", _INVALID,
         "the node's residency changed since it was read; read it and plan again",
         "cortexctl status"),
    _row("request_too_large", "CX-REQ-SIZE", 413, "client",
         ("invalid_request_error", "request_too_large"),
         "the body is over the size limit", "cortexctl explain CX-REQ-SIZE"),
    _row("prompt_too_long_for_vram", "CX-REQ-VRAM", 413, "client",
         ("invalid_request_error", "request_too_large"),
         "the request can never fit the device's memory", "cortexctl devices"),
    _row("unsupported_media_type", "CX-REQ-MEDIA", 415, "client", _INVALID,
         "the body is not application/json", "cortexctl explain CX-REQ-MEDIA"),
    _row("template_render_failed", "CX-REQ-TEMPLATE", 422, "client", _INVALID,
         "the model's chat template refused these messages",
         "cortexctl explain CX-REQ-TEMPLATE"),
    _row("wrong_modality", "CX-REQ-MODALITY", 422, "client", _INVALID,
         "the model does not do this kind of work", "cortexctl models"),
    _row("model_source_invalid", "CX-MODEL-SOURCE", 422, "client", _INVALID,
         "the model's source names no model folder and no .gguf file",
         "cortexctl models"),
    _row("request_quarantined", "CX-REQ-QUARANTINED", 422, "client", _INVALID,
         "this request killed a device while it ran alone", "cortexctl devices"),
    _row("grammar_dead_end", "CX-REQ-GRAMMAR", 422, "client", _INVALID,
         "the grammar left no token to go on with, or grew too complex to follow;"
         " the same request would end there again",
         "cortexctl explain CX-REQ-GRAMMAR"),
    _row("rate_limit_exceeded", "CX-RATE", 429, "capacity",
         ("rate_limit_error", "rate_limit_error"),
         "the key used its share", "cortexctl status", 1),
    _row("queue_full", "CX-QUEUE-FULL", 429, "capacity",
         ("rate_limit_error", "rate_limit_error"),
         "every seat and queue place of the model is taken", "cortexctl status", 1),
    _row("internal_error", "CX-INTERNAL", 500, "host", _SERVER,
         "a bug of ours; the journal holds the whole cause under the request id",
         "journalctl -u neurond -u cortexd -p err"),
    _row("nan_logits", "CX-NAN", 500, "host", _SERVER,
         "the model computed NaN for this request; nothing of it was shown",
         "cortexctl models"),
    _row("load_failed", "CX-LOAD-FAILED", 500, "host", _SERVER,
         "the model's files could not be loaded", "cortexctl models"),
    _row("bad_gateway", "CX-NODE-ANSWER", 502, "peer", _SERVER,
         "the node closed the connection or sent no valid answer",
         "cortexctl status"),
    _row("model_loading", "CX-MODEL-LOADING", 503, "capacity", _BUSY,
         "the model is being loaded", "cortexctl models", 2),
    _row("model_recovering", "CX-MODEL-RECOVERING", 503, "device", _BUSY,
         "the model's device died and comes back", "cortexctl devices", 2),
    _row("no_healthy_node", "CX-NODE-NONE", 503, "peer", _BUSY,
         "no node that could serve the model is reachable", "cortexctl status", 2),
    _row("insufficient_vram", "CX-LOAD-NOROOM", 503, "capacity", _BUSY,
         "no device has room for the model", "cortexctl devices", 10),
    _row("cuda_unavailable", "CX-CUDA", 503, "device", _BUSY,
         "the driver and CUDA don't work together", "cortexctl devices", 30),
    _row("device_failed", "CX-DEVICE-FAILED", 503, "device", _BUSY,
         "the device died again and again and was taken out", "cortexctl devices", 30),
    _row("device_fault", "CX-DEVICE-FAULT", 503, "device", _BUSY,
         "the device process died or was killed while it served the request",
         "cortexctl devices", 1),
    _row("overloaded", "CX-OVERLOADED", 503, "capacity", _BUSY,
         "no decision was possible within the time allowed for one",
         "cortexctl status", 1),
    _row("shutting_down", "CX-STOPPING", 503, "capacity", _BUSY,
         "the daemon is stopping or draining", "cortexctl status", 5),
    _row("config_invalid", "CX-CONFIG", 500, "host", _SERVER,
         "the configuration has an unknown key, a wrong type or a missing file",
         "cortexctl explain CX-CONFIG"),
)  # fmt: skip

TABLE: dict[str, ErrorRow] = {row.code: row for row in _ROWS}


class ServiceError(Exception):
    """An error with a row in the table.

    `message` is safe for a client: no path, address, host name or shared-memory name
    (S51). `fields` join the error object (`prompt_len`, `percent` …). `retry_after_s`
    overrides the row's. `chain` holds the causes, outermost first, as "Type: text"; it
    is for the journal and never sent to a client (S05, S41).
    """

    default_code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        fields: dict[str, Any] | None = None,
        chain: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param
        self.row = TABLE[self.code]
        self._retry_after_s = retry_after_s
        self.fields = dict(fields or {})
        self.chain = chain

    @property
    def status(self) -> int:
        return self.row.status

    @property
    def retry_after_s(self) -> float | None:
        given = self._retry_after_s
        return given if given is not None else self.row.retry_after_s

    def to_wire(self) -> list[Any]:
        """[code, message, param, retry_after_s, fields, chain]."""
        return [
            self.code,
            self.message,
            self.param,
            self._retry_after_s,
            self.fields,
            list(self.chain or cause_chain(self)[1:]),
        ]


class ClientError(ServiceError):
    """The caller must change the request."""

    default_code = "invalid_request_error"


class CapacityError(ServiceError):
    """Somebody must wait or add room."""

    default_code = "queue_full"


class HostError(ServiceError):
    """We must mend our code, or the operator the host."""

    default_code = "internal_error"


class DeviceFault(ServiceError):
    """The device process must go."""

    default_code = "device_fault"


class PeerLost(ServiceError):
    """The process or node at the other end is gone or talks nonsense."""

    default_code = "bad_gateway"


_BY_KIND: dict[str, type[ServiceError]] = {
    "client": ClientError,
    "capacity": CapacityError,
    "host": HostError,
    "device": DeviceFault,
    "peer": PeerLost,
}


def error_for(code: str, message: str, **more: Any) -> ServiceError:
    """The exception of the class that the table names for `code`."""
    return _BY_KIND[TABLE[code].kind](message, code=code, **more)


def from_wire(wire: list[Any]) -> ServiceError:
    """Inverse of `ServiceError.to_wire`. An unknown code becomes internal_error."""
    code, message, param, retry_after_s, fields, chain = wire
    known = code if code in TABLE else "internal_error"
    return error_for(
        known,
        message,
        param=param,
        retry_after_s=retry_after_s,
        fields=fields,
        chain=tuple(chain),
    )


def cause_chain(error: BaseException) -> tuple[str, ...]:
    """The error and its causes, outermost first, each as "Type: text" (S05)."""
    chain: list[str] = []
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen and len(chain) < 16:
        seen.add(id(link))
        chain.append(f"{type(link).__name__}: {link}"[:2000])
        link = link.__cause__ or link.__context__
    return tuple(chain)
