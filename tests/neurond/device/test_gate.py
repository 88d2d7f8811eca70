"""Requests whose grammar is being compiled: accepted late, in nobody's way."""

from __future__ import annotations

import re
from pathlib import Path

import psutil

from ipc.messages import Accepted, Failed, Finished
from neurond import grammar
from tests.neurond.device import tiny, tinytokenizer
from tests.neurond.device.host import WORKER, Host, emitted, ends
from tests.neurond.device.rig import Rig, chat_ids, error_code, make_submit, wait_for
from tests.neurond.device.simulated import Simulation

GRAMMAR = grammar.write(grammar.REGEX, "[ab]+")
LONG = 400


def slow(**settings: float) -> Simulation:
    """A grammar takes 20 steps."""
    return Simulation({**settings}, step_ms=5, compile_ms=100)


def test_streams_go_on_and_others_pass_while_a_grammar_is_compiled() -> None:
    host = slow(max_running=2)
    host.ask(1, (1, 2), max_tokens=LONG)
    assert host.ask(2, (3, 4), grammar=GRAMMAR) is None
    assert isinstance(host.ask(3, (5, 6), max_tokens=2), Accepted)
    host.step(20)
    assert len(host.ids(1)) == 20
    assert len(host.ids(3)) == 2
    assert not [m for m in host.messages if isinstance(m, Accepted) and m.id == 2]
    host.step(4)
    assert host.accepted(2) == Accepted(2, 0, 0)
    host.drain()
    assert isinstance(host.ended(2), Finished)
    host.check_nothing_is_held()


def test_a_grammar_that_does_not_compile_is_a_refusal_not_an_end() -> None:
    host = Simulation(compile_ms=100, compile_fail=True)
    assert host.ask(1, (3, 4), grammar=GRAMMAR) is None
    host.drain()
    assert host.code(1) == "invalid_request_error"
    assert [type(m) for m in host.messages] == [Failed]
    assert host.counter("requests_failed_total") == 1
    assert host.counter("prompt_tokens_total") == 0
    host.check_nothing_is_held()


def test_who_leaves_while_its_grammar_is_compiled_hears_no_more() -> None:
    host = slow()
    host.ask(1, (3, 4), grammar=GRAMMAR)
    assert host.engine.is_stalled
    host.engine.cancel(1, 1)
    assert not host.engine.busy
    host.step(60)
    assert host.messages == []
    host.check_nothing_is_held()


def test_who_is_accepted_hears_of_it_before_the_first_forward() -> None:
    """Which may kill the device: the front end must know that it was taken (S16)."""
    host = slow()
    host.ask(1, (3, 4), grammar=GRAMMAR)
    while not host.messages:
        host.step(1)
    assert host.messages == [Accepted(1, 0, 0)]
    assert host.counter("steps_total") == 0


def test_a_deadline_holds_while_a_grammar_is_compiled() -> None:
    host = slow()
    host.ask(1, (3, 4), grammar=GRAMMAR, deadline_s=0.05)
    host.drain()
    assert host.code(1) == "overloaded"
    assert [type(m) for m in host.messages] == [Failed]


def test_nothing_is_finished_that_was_not_accepted() -> None:
    """It comes back whole, from a device that has died."""
    host = slow()
    host.ask(1, (3, 4, 5, 6), num_prompt=2, max_tokens=2, grammar=GRAMMAR)
    host.drain()
    assert [type(m) for m in host.messages] == [Accepted, Finished]


def test_an_unload_ends_what_is_being_compiled() -> None:
    host = slow()
    host.ask(1, (3, 4), grammar=GRAMMAR)
    ((_, message),) = host.engine.drop_model("m")
    assert isinstance(message, Failed)
    assert not host.engine.busy


def test_who_gives_way_keeps_its_grammar() -> None:
    """It is compiled once, and follows all that was emitted."""
    host = Simulation({"prefill_chunk": 64}, step_ms=5, compile_ms=10, pages=9)
    host.ask(1, range(60), max_tokens=60)
    host.ask(2, range(100, 150), max_tokens=60, grammar=GRAMMAR)
    host.drain()
    assert host.counter("preempted_total") >= 1
    assert isinstance(host.ended(2), Finished)
    assert len([m for m in host.messages if isinstance(m, Accepted)]) == 2


# ---- torch --------------------------------------------------------------------------


def test_preempted_and_resumed_it_writes_what_it_writes_alone(tmp_path: Path) -> None:
    folder = tiny.build("llama", tmp_path)
    tokenizer = tinytokenizer.write(folder)
    text = grammar.write(grammar.REGEX, "[a-z]{20}[0-9]{20}[A-Z]{20}")
    more = {"grammar": text, "max_tokens": 80}
    alone = Host(page_tokens=16)
    alone.load(folder)
    [whole] = alone.run((1, 2, 3), **more)
    assert re.fullmatch("[a-z]{20}[0-9]{20}[A-Z]{20}", tokenizer.decode(whole))
    page_bytes = alone.engine.models["m"].cache.page_bytes
    host = Host(page_tokens=16, kv_bytes=8 * page_bytes)
    host.load(folder)
    host.engine.submit(WORKER, make_submit(1, tuple(range(30)), max_tokens=150))
    host.engine.submit(WORKER, make_submit(2, (1, 2, 3), **more))
    messages = host.drain()
    assert host.page.read().counters["preempted_total"] >= 1
    assert isinstance(ends(messages)[2], Finished)
    assert emitted(messages, 2) == whole


# ---- a process ----------------------------------------------------------------------


def test_a_device_sleeps_while_it_compiles_and_wakes_when_it_has(
    rig: Rig, tmp_path: Path
) -> None:
    """It gives the core away often: one that spins never does, one that sleeps as long
    as an idle device a few times."""
    side = rig.ready(tmp_path / "fake", compile_ms=400)
    process = psutil.Process(rig.pid)
    before = process.num_ctx_switches().voluntary
    side.ask(1, "hello", grammar=GRAMMAR)
    end = side.wait_end(1)
    assert isinstance(end, Finished)
    assert process.num_ctx_switches().voluntary - before > 40


def test_a_refusal_comes_over_the_ring_without_an_acceptance(
    rig: Rig, tmp_path: Path
) -> None:
    side = rig.ready(tmp_path / "fake", compile_ms=20, compile_fail=True)
    side.end.submit(make_submit(1, chat_ids("hello"), grammar=GRAMMAR))
    assert error_code(wait_for(lambda: side.ended(1))) == "invalid_request_error"
    assert not [m for m in side.inbox if isinstance(m, Accepted)]
