"""Messages to prompt text, by the model's own chat template.

Front end and gateway. Rendering is transformers' own: a sandboxed, immutable jinja
environment whose compiled templates are kept. A template is still a program of the
model's maker, so it runs under a time and a size limit (T3).

Special tokens that a user or a tool wrote are wrapped in private-use markers before
rendering and come out as literal segments: text, never control (S76).
Invariant: a template's failure is the request's, a 422; never a fall-back (S63).
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from ipc.errors import ClientError
from neurond.serving.messages import Message
from neurond.serving.tokenizer import Segment
from neurond.serving.tools import Tool

MAX_PROMPT_CHARS = 64 << 20
_OPEN, _CLOSE = "\U000f0000", "\U000f0001"
_MARKS = {ord(_OPEN): None, ord(_CLOSE): None}
_TEMPLATE_FILE = "<template>"
_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TimeoutError,
    TypeError,
    ValueError,
)


class ChatTemplate:
    """One model's template; `control_texts` are its special tokens as text."""

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        control_texts: Sequence[str],
    ) -> None:
        self._source = source
        self._variables = dict(special_tokens)
        longest_first = sorted(control_texts, key=len, reverse=True)
        pattern = "|".join(map(re.escape, longest_first)) or r"(?!)"
        self._control = re.compile(pattern)
        self.takes_tools = _mentions(source, "tools")

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        limit_s: float,
        add_generation_prompt: bool = True,
    ) -> tuple[Segment, ...]:
        """`tools` are left out where the template doesn't take them.

        Raises ClientError template_render_failed.
        """
        offered = tools if self.takes_tools else ()
        try:
            marked = [self._marked(message) for message in messages]
            functions = [self._marked(tool) for tool in offered]
            text = _within(
                limit_s,
                lambda: self._render(
                    marked, functions, add_generation_prompt=add_generation_prompt
                ),
            )
        except _TEMPLATE_ERRORS as error:
            raise _refused(error) from error
        if len(text) > MAX_PROMPT_CHARS:
            raise _refused(ValueError("prompt too large"))
        return _segments(text)

    def _render(
        self, messages: list[Message], tools: list[Tool], *, add_generation_prompt: bool
    ) -> str:
        rendered, _ = render_jinja_template(
            conversations=[messages],
            tools=tools or None,
            chat_template=self._source,
            add_generation_prompt=add_generation_prompt,
            **self._variables,
        )
        return str(rendered[0])

    def _marked(self, value: Any) -> Any:
        if isinstance(value, str):
            clean = value.translate(_MARKS) if not value.isascii() else value
            return self._control.sub(f"{_OPEN}\\g<0>{_CLOSE}", clean)
        if isinstance(value, dict):
            return {self._marked(k): self._marked(v) for k, v in value.items()}
        if isinstance(value, list):
            return [self._marked(item) for item in value]
        return value


def _mentions(source: str, name: str) -> bool:
    """Whether the program, not the text around it, has this name."""
    try:
        tokens = list(jinja2.Environment().lex(source))
    except jinja2.TemplateError:
        return False  # every request will hear of it
    return any((kind, text) == ("name", name) for _, kind, text in tokens)


def _segments(text: str) -> tuple[Segment, ...]:
    if _OPEN not in text:
        return (Segment(text, literal=False),)
    pieces = re.split(f"{_OPEN}(.*?){_CLOSE}", text, flags=re.DOTALL)
    marked = [Segment(piece, literal=i % 2 == 1) for i, piece in enumerate(pieces)]
    return tuple([segment for segment in marked if segment.text])


def _within(limit_s: float, render: Callable[[], str]) -> str:
    """Run `render`; a template line after the deadline raises TimeoutError.

    Only a tracer can stop a Python loop in this thread, and only template frames pay
    for it: tens of lines per message. The limit is on this thread's own CPU time: on a
    busy host a harmless template must not be refused for the time that others took.
    """
    deadline_s = time.thread_time() + limit_s

    def watch(frame: FrameType, _event: str, _arg: object) -> Any:
        if frame.f_code.co_filename != _TEMPLATE_FILE:
            return None
        if time.thread_time() > deadline_s:
            raise TimeoutError("the template took too long")
        return watch

    previous = sys.gettrace()
    sys.settrace(watch)
    try:
        return render()
    finally:
        sys.settrace(previous)


def _refused(error: BaseException) -> ClientError:
    """Only a template's own words may be shown; they are about the messages."""
    own_words = type(error) is jinja2.TemplateError or isinstance(error, TimeoutError)
    reason = str(error)[:200] if own_words else "it failed on them"
    return ClientError(
        f"the chat template refused the messages: {reason}",
        code="template_render_failed",
        param="messages",
    )
