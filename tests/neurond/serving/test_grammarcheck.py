"""Grammars are compiled off the loop, once, in time, or refused with the reason."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from ipc.errors import ClientError, ServiceError
from neurond import grammar as grammars
from neurond.serving.grammarcheck import GrammarCheck
from neurond.serving.structured import Grammar


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


def grammar(kind: str = "regex", value: Any = "a+", param: str = "p") -> Grammar:
    return Grammar(json.dumps({kind: value}), param)


class Gate:
    """A compiler that waits to be let go; `calls` are the threads that it ran in."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.go = threading.Event()

    def __call__(self, _text: str) -> None:
        self.calls.append(threading.get_ident())
        self.go.wait(10)


def checked(
    work: Callable[[GrammarCheck], Coroutine[Any, Any, None]], **more: Any
) -> None:
    check = GrammarCheck(more.pop("check", grammars.check), **more)
    try:
        run(work(check))
    finally:
        check.close()


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("regex", "(a", "unclosed group"),
        ("json_schema", {"type": "objekt"}, "objekt"),
        ("json_schema", {"not": {"type": "string"}}, "not"),
        ("lark", "start: nowhere", "nowhere"),
    ],
)
def test_a_grammar_that_does_not_compile_is_400_with_the_compilers_words(
    kind: str, value: Any, words: str
) -> None:
    async def work(check: GrammarCheck) -> None:
        with pytest.raises(ClientError, match=words) as caught:
            await check.check(grammar(kind, value, "response_format"))
        error = caught.value
        assert (error.status, error.code) == (400, "invalid_request_error")
        assert error.param == "response_format"

    checked(work)


def test_a_grammar_is_compiled_once_and_off_the_loop() -> None:
    gate = Gate()
    gate.go.set()

    async def work(check: GrammarCheck) -> None:
        for _ in range(3):
            await check.check(grammar())
        assert len(gate.calls) == 1
        assert gate.calls[0] != threading.get_ident()

    checked(work, check=gate)


def test_a_bad_one_is_bad_again() -> None:
    async def work(check: GrammarCheck) -> None:
        for _ in range(2):
            with pytest.raises(ClientError):
                await check.check(grammar(value="(a"))

    checked(work)


def test_one_that_takes_too_long_is_refused_and_who_waits_behind_it_is_503() -> None:
    gate = Gate()

    async def work(check: GrammarCheck) -> None:
        slow = [check.check(grammar(value=v, param="guided_regex")) for v in "ab"]
        busy = [asyncio.ensure_future(work) for work in slow]
        while len(gate.calls) < 2:
            await asyncio.sleep(0.001)
        behind = asyncio.ensure_future(check.check(grammar(value="b+")))
        for work in busy:
            with pytest.raises(ClientError, match="too long") as caught:
                await work
            assert caught.value.param == "guided_regex"
        with pytest.raises(ServiceError) as waited:
            await behind
        assert (waited.value.code, waited.value.status) == ("overloaded", 503)
        gate.go.set()
        await check.check(grammar(value="c"))
        assert len(gate.calls) == 3  # the one that waited was withdrawn

    checked(work, check=gate, limit_s=0.4)


def test_what_is_remembered_has_a_bound() -> None:
    gate = Gate()
    gate.go.set()

    async def work(check: GrammarCheck) -> None:
        for index in range(300):
            await check.check(grammar(value=str(index)))
        await check.check(grammar(value="299"))
        assert len(gate.calls) == 300
        await check.check(grammar(value="0"))
        assert len(gate.calls) == 301

    checked(work, check=gate)
