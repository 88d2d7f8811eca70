"""What a device does with requests, pages and memory, on simulated time."""

from __future__ import annotations

import pytest

from ipc.messages import Accepted, Failed, Finished, Progress, Sampling
from neurond.device.fakescript import IM_END
from neurond.device.verdict import DeviceDied
from tests.neurond.device.rig import chat_ids, error_code
from tests.neurond.device.simulated import Simulation

LONG = tuple(range(100, 200))


def counted(count: int) -> list[int]:
    """What the fake writes."""
    return list(b"".join(b"w%d " % n for n in range(count)))[:count]


# ---- batches ------------------------------------------------------------------------


def test_sequences_join_and_leave_a_batch_at_every_step() -> None:
    host = Simulation()
    host.ask(1, (1, 2), max_tokens=4)
    host.step(2)
    host.ask(2, (3, 4), max_tokens=2)
    host.step()
    assert host.backend.steps[-1] == [(1, 1), (2, 2)]
    host.step()
    assert sorted(host.backend.steps[-1]) == [(1, 1), (2, 1)]
    host.drain()
    assert (host.ids(1), host.ids(2)) == (counted(4), counted(2))
    host.check_nothing_is_held()


def test_models_take_turns() -> None:
    host = Simulation()
    host.load("other")
    host.ask(1, (1, 2), max_tokens=5)
    host.ask(2, (1, 2), max_tokens=5, model="other")
    host.ask(3, (1, 2), max_tokens=5)
    host.drain()
    order = [min(number for number, _ in step) for step in host.backend.steps]
    assert order == [1, 2] * 5


def test_a_crowd_of_prompts_leaves_the_other_model_its_turns() -> None:
    host = Simulation({"prefill_chunk": 10})
    host.load("other")
    host.ask(0, (1, 2), max_tokens=30, model="other")
    for request in range(1, 9):
        host.ask(request, (request, *LONG))
    host.step(20)
    turns = [step[0][0] == 0 for step in host.backend.steps]
    assert turns == [True, False] * 10


def test_a_long_prompt_stalls_no_stream_by_more_than_its_chunk() -> None:
    host = Simulation(step_ms=20, token_ms=1)
    host.ask(1, (1, 2), max_tokens=400)
    host.step(30)
    before_s = host.now_s
    host.ask(2, [n % 250 for n in range(3000)], max_tokens=2)
    gaps, last_s = [], host.now_s
    while not host.ids(2):
        host.step()
        gaps.append(host.now_s - last_s)
        last_s = host.now_s
    alone_s = 3000 * 0.001
    assert sorted(gaps)[-2] <= 2.95 * 0.020
    assert host.now_s - before_s <= 2 * alone_s
    assert len(host.ids(1)) >= len(gaps)


def test_alone_a_prompt_is_computed_in_whole_chunks() -> None:
    host = Simulation({"prefill_chunk": 40})
    host.answer(1, LONG, max_tokens=1)
    assert [step for step in host.backend.steps] == [[(1, 40)], [(1, 40)], [(1, 20)]]
    progress = [m for m in host.messages if isinstance(m, Progress)]
    assert progress == [Progress(1, 40, 100), Progress(1, 80, 100)]


def test_rates_are_measured() -> None:
    host = Simulation(step_ms=20, token_ms=1)
    host.answer(1, LONG)
    rates = host.engine.rates("m")
    assert rates.prefill_tokens_s == pytest.approx(1000)
    assert rates.decode_steps_s == pytest.approx(50)


# ---- prefix reuse -------------------------------------------------------------------


def test_s81_a_second_turn_computes_what_is_new_and_no_more() -> None:
    host = Simulation(page_tokens=16)
    first = host.answer(1, LONG, max_tokens=9)
    turn = (*LONG, *first, 7, 7, 7)
    host.ask(2, turn)
    assert host.accepted(2) == Accepted(2, 0, 108)  # the last token was never computed
    host.drain()
    assert host.cached(2) == 108
    assert host.computed(2) == len(turn) - 108 + 7
    assert host.counter("cached_tokens_total") == 108
    computed = host.counter("computed_tokens_total")
    assert computed == host.computed(1) + host.computed(2)
    host.check_nothing_is_held()


def test_s80_a_turn_without_its_reasoning_hits_up_to_the_prompts_end() -> None:
    host = Simulation(page_tokens=16)
    host.answer(1, LONG, max_tokens=30)
    host.answer(2, (*LONG, 3, 3, 3, 3))
    assert host.cached(2) == len(LONG)


def test_a_page_that_two_share_partly_is_copied_not_written() -> None:
    host = Simulation(page_tokens=16)
    host.answer(1, (*LONG[:40], 1, 1, 1))
    host.ask(2, (*LONG[:40], 2, 2, 2))
    host.ask(3, (*LONG[:40], 3, 3, 3))
    host.drain()
    assert [count for _, _, count in host.backend.copies] == [8, 8]
    assert (host.cached(2), host.cached(3)) == (40, 40)
    host.check_nothing_is_held()


def test_a_tail_that_nobody_else_uses_is_written_on_without_a_copy() -> None:
    host = Simulation(page_tokens=16)
    first = host.answer(1, LONG[:20], max_tokens=5)
    host.answer(2, (*LONG[:20], *first, 1, 1))
    assert host.backend.copies == []
    assert host.cached(2) == 24


def test_a_tail_that_is_still_written_is_copied() -> None:
    host = Simulation(page_tokens=16)
    host.ask(1, LONG[:20], max_tokens=9)
    host.step(2)
    host.ask(2, (*LONG[:20], 1, 1), max_tokens=9)
    host.drain()
    assert host.cached(2) == 20
    assert [count for _, _, count in host.backend.copies] == [4]


def test_choices_share_a_prompt_that_is_computed_once() -> None:
    host = Simulation({"prefill_chunk": 32}, page_tokens=16)
    for choice in range(4):
        host.ask(choice, LONG, choice=choice)
    host.drain()
    assert host.computed(0) == 107
    assert [host.computed(n) for n in (1, 2, 3)] == [8, 8, 8]
    assert [host.cached(n) for n in (1, 2, 3)] == [99, 99, 99]
    assert [host.ids(n) for n in range(4)] == [counted(8)] * 4
    host.check_nothing_is_held()


def test_agents_with_one_system_prompt_wait_for_that_part_only() -> None:
    host = Simulation({"prefill_chunk": 50}, page_tokens=10)
    host.ask(1, (*LONG[:50], *(1,) * 200))
    host.ask(2, (*LONG[:50], *(2,) * 20))
    host.step()
    assert host.backend.steps == [[(1, 50)]]
    host.step()
    assert {number for number, _ in host.backend.steps[1]} == {1, 2}
    host.drain()
    assert host.cached(2) == 50


def test_nobody_waits_for_a_prompt_that_is_cancelled() -> None:
    host = Simulation({"prefill_chunk": 16})
    host.ask(1, LONG)
    host.ask(2, LONG)
    host.step()
    host.engine.cancel(1, 1)
    host.drain()
    assert isinstance(host.ended(2), Finished)
    assert host.cached(2) == 16
    host.check_nothing_is_held()


def test_salts_and_the_switch_keep_prompts_apart() -> None:
    host = Simulation()
    host.answer(1, LONG, cache_salt="a")
    host.answer(2, LONG, cache_salt="b")
    assert host.cached(2) == 0
    off = Simulation({"prefix_cache": False})
    off.answer(1, LONG)
    off.answer(2, LONG)
    assert off.cached(2) == 0
    off.check_nothing_is_held()


def test_a_cache_that_does_not_share_is_only_counted() -> None:
    host = Simulation(shares=False, page_tokens=10, pages=40)
    host.answer(1, LONG)
    host.answer(2, LONG)
    assert host.cached(2) == 0
    assert host.backend.copies == []
    host.check_nothing_is_held()


# ---- recurrent states ---------------------------------------------------------------


def test_s82_a_recurrent_model_goes_on_from_saved_states_only() -> None:
    host = Simulation(page_tokens=16, state_bytes=8)
    system = (*LONG[:30], IM_END, 7)
    host.answer(1, (*system, 1, 1, 1))
    host.answer(2, (*system, 2, 2, 2))
    assert host.cached(2) == 31  # past the last special token, not 32
    host.answer(3, (*system[:20], 2, 2, 2))
    assert host.cached(3) == 0
    answer = host.ids(1)
    host.answer(4, (*system, 1, 1, 1, 5, 5))
    assert host.cached(4) == 35  # the prompt's end (S80)
    host.answer(5, (*system, 1, 1, 1, *answer, 5))
    assert host.cached(5) == 35 + len(answer) - 1  # the answer's end
    host.check_nothing_is_held()


def test_s82_states_count_and_go_with_their_pages() -> None:
    host = Simulation(page_tokens=16, page_bytes=10, state_bytes=1000)
    host.answer(1, LONG[:20])
    assert host.gauge("kv_used_bytes") == 0
    assert host.gauge("kv_cached_bytes") == 2 * 10 + 2 * 1000
    host.ask(2, LONG[40:60])
    host.step()
    assert host.gauge("kv_used_bytes") >= 2 * 10 + 1000
    host.drain()
    host.check_nothing_is_held()


@pytest.mark.parametrize("is_warm", [False, True])
def test_s82_states_yield_where_the_window_needs_their_bytes(is_warm: bool) -> None:
    host = Simulation(
        {"kv_bytes": 420}, page_tokens=16, page_bytes=16, state_bytes=100, pages=64
    )
    assert host.engine.window("m") == 320
    if is_warm:
        host.answer(1, LONG, max_tokens=9)
        assert host.engine.kv.budget.accounts["m"].store.num_states > 0
    assert len(host.answer(2, (*LONG, *LONG, *LONG[::-1]), max_tokens=20)) == 20
    assert len(host.answer(3, LONG[::-1], max_tokens=220)) == 220
    host.check_nothing_is_held()


# ---- room ---------------------------------------------------------------------------


def test_s26_what_fits_alone_fits_beside_a_prefix_it_parts_from() -> None:
    host = Simulation(page_tokens=16, pages=8)
    host.answer(1, LONG, max_tokens=9)
    host.answer(2, (*LONG[:90], *range(30)), max_tokens=8)
    assert host.cached(2) == 80  # there is no page for a copy
    host.check_nothing_is_held()


def test_s26_what_can_never_fit_is_refused_and_never_queued() -> None:
    host = Simulation(page_tokens=10, pages=6)
    answer = host.ask(1, LONG[:60])
    assert error_code(answer) == "context_length_exceeded"
    assert isinstance(answer, Failed)
    assert answer.error[4] == {"prompt_len": 60, "max": 59}
    assert host.gauge("waiting") == 0
    assert len(host.answer(2, LONG[:59])) == 1
    none = Simulation({"kv_bytes": 10}, page_bytes=100)
    assert error_code(none.ask(1, (1, 2))) == "prompt_too_long_for_vram"


def test_s27_a_seat_needs_pages_first() -> None:
    host = Simulation(page_tokens=10, pages=10)
    host.ask(1, LONG[:60], max_tokens=20)
    host.ask(2, (5,) * 60, max_tokens=20)
    host.step()
    assert (host.gauge("running"), host.gauge("waiting")) == (1, 1)
    host.drain()
    assert (host.ids(1), host.ids(2)) == (counted(20), counted(20))
    host.check_nothing_is_held()


@pytest.mark.parametrize("way", ["finish", "cancel", "nan", "deadline", "unload"])
def test_s27_seat_and_pages_come_back_on_every_way_out(way: str) -> None:
    host = Simulation(page_tokens=10, pages=30)
    fault = "fault=nan at=3" if way == "nan" else ""
    ids = chat_ids(f"[[fake tokens=50 {fault}]]")
    deadline_s = 1.0 if way == "deadline" else 0.0
    host.ask(1, ids, max_tokens=50, deadline_s=deadline_s)
    host.step(3)
    if way == "cancel":
        host.engine.cancel(1, 1)
    elif way == "unload":
        host.messages += [message for _, message in host.engine.drop_model("m")]
        assert host.engine.kv.budget.accounts == {}
        host.load("m", pages=30)
    host.sleep(2.0)
    host.drain()
    assert host.gauge("running") == 0
    codes = {"nan": "nan_logits", "deadline": "overloaded", "unload": "no_healthy_node"}
    if way in codes:
        assert host.code(1) == codes[way]
    host.check_nothing_is_held()


def test_s28_the_store_yields_to_requests() -> None:
    host = Simulation({"kv_bytes": 1000}, page_tokens=10, page_bytes=100)
    host.answer(1, LONG[:40], max_tokens=3)
    host.answer(2, (5,) * 40, max_tokens=3)
    assert host.gauge("kv_cached_bytes") == 1000
    host.answer(3, (6,) * 70, max_tokens=3)
    assert host.ids(3) == counted(3)
    assert host.gauge("kv_budget_bytes") == 1000
    assert host.gauge("kv_cached_bytes") <= 1000
    host.check_nothing_is_held()


def test_s28_a_models_store_yields_to_another_models_request() -> None:
    host = Simulation({"kv_bytes": 1000}, page_tokens=10, page_bytes=100)
    host.load("other", page_tokens=10, page_bytes=100)
    host.answer(1, LONG[:80])
    host.answer(2, (5,) * 80, model="other")
    assert host.engine.kv.budget.accounts["m"].pages.num_used <= 1
    host.check_nothing_is_held()


def test_the_youngest_gives_way_and_is_computed_again() -> None:
    host = Simulation(page_tokens=10, pages=10)
    host.ask(1, LONG[:38], max_tokens=40)
    host.ask(2, (5,) * 38, max_tokens=40)
    host.drain()
    assert host.counter("preempted_total") >= 1
    assert (host.ids(1), host.ids(2)) == (counted(40), counted(40))
    assert host.computed(1) == 77
    assert host.computed(2) > 77
    host.check_nothing_is_held()


# ---- the queue ----------------------------------------------------------------------


def test_s22_the_queue_is_bounded_and_a_wait_has_an_end() -> None:
    settings = {"max_running": 1, "max_queue": 1, "queue_deadline_s": 4.0}
    host = Simulation(settings, step_ms=100)
    host.ask(1, (1, 2), max_tokens=100)
    host.ask(2, (1, 2))
    refused = host.ask(3, (1, 2))
    assert error_code(refused) == "queue_full"
    host.step(45)
    assert host.code(2) == "overloaded"
    end = host.ended(2)
    assert isinstance(end, Failed)
    # Retry-After: what is left of the one that runs, at the measured rate
    assert end.error[3] == pytest.approx((100 - len(host.ids(1))) * 0.1, abs=0.3)
    assert isinstance(host.ask(4, (1, 2)), Accepted)
    again = host.ask(5, (1, 2))
    assert isinstance(again, Failed)
    assert again.error[3] == pytest.approx((100 - len(host.ids(1))) * 0.1, abs=0.3)
    host.engine.cancel(1, 4)
    host.drain()
    assert host.ids(1) == counted(100)


def test_s23_a_request_cancelled_in_the_queue_leaves_no_trace() -> None:
    host = Simulation({"max_running": 1, "max_queue": 2})
    host.ask(1, (1, 2), max_tokens=30)
    host.ask(2, (1, 2))
    host.ask(3, (1, 2))
    host.step()
    host.engine.cancel(1, 2)
    host.engine.cancel(1, 3)
    assert (host.gauge("running"), host.gauge("waiting")) == (1, 0)
    assert isinstance(host.ask(4, (1, 2)), Accepted)
    assert isinstance(host.ask(5, (1, 2)), Accepted)
    host.drain()
    assert (host.ended(2), host.ended(3)) == (None, None)
    assert isinstance(host.ask(6, (1, 2)), Accepted)  # idle: never a 429
    host.drain()
    host.check_nothing_is_held()


def test_s29_saturation_is_nothing_that_a_model_did() -> None:
    host = Simulation({"max_running": 2, "max_queue": 3, "queue_deadline_s": 1.0})
    for request in range(40):
        host.ask(request, chat_ids("[[fake step_ms=300 tokens=20]]"), max_tokens=20)
        host.step()
    host.drain()
    codes = {str(m.error[0]) for m in host.messages if isinstance(m, Failed)}
    assert codes == {"queue_full", "overloaded"}
    assert "poisoned" not in host.written.getvalue()
    assert [row.name for row in host.page.read().models] == ["m"]
    host.check_nothing_is_held()


def test_s31_one_principal_does_not_keep_the_others_waiting() -> None:
    host = Simulation({"max_running": 4})
    for request in range(20):
        host.ask(request, (1, request), max_tokens=10, principal="batch")
    host.step(3)
    host.ask(50, (2, 2), max_tokens=10, principal="person")
    host.ask(51, (2, 3), max_tokens=10, principal="person")
    host.drain()
    ends = [m.id for m in host.messages if isinstance(m, Finished)]
    assert set(ends[:4]) == {0, 1, 2, 3}  # alone it may use everything
    assert {50, 51} <= set(ends[4:8])


# ---- what goes wrong ----------------------------------------------------------------


def test_s20_out_of_memory_drops_the_store_and_tries_again() -> None:
    host = Simulation(fault={"kind": "oom", "at_step": 9})
    host.answer(1, LONG, max_tokens=4)
    assert host.gauge("kv_cached_bytes") == 0  # pages of the fake have no bytes
    store = host.engine.kv.budget.accounts["m"].store
    assert store.num_nodes > 0
    host.ask(2, (1, 2), max_tokens=10)
    host.drain()
    assert host.ids(2) == counted(10)
    assert host.counter("out_of_memory_total") == 1
    host.answer(3, LONG)
    assert host.cached(3) == 0


def test_s20_in_a_prefill_it_fails_what_is_too_large_and_nobody_else() -> None:
    host = Simulation({"prefill_chunk": 512}, oom_tokens=150)
    host.ask(1, (1, 2), max_tokens=30)
    host.ask(2, (3, 4), max_tokens=30)
    host.step(2)
    host.ask(3, [n % 200 for n in range(600)], cache_salt="x")
    host.drain()
    assert (host.ids(1), host.ids(2)) == (counted(30), counted(30))
    assert isinstance(host.ended(3), Finished)  # beside streams its chunks are small
    host.ask(4, [n % 199 for n in range(600)], cache_salt="y")
    host.drain()
    assert host.code(4) == "insufficient_vram"
    assert host.answer(5, (1, 2)) == counted(8)
    host.check_nothing_is_held()


def test_s20_in_decode_the_row_to_blame_fails_and_the_others_go_on() -> None:
    host = Simulation()
    for request in (1, 2):
        host.ask(request, (1, request), max_tokens=20)
    host.ask(3, chat_ids("[[fake tokens=20 fault=oom at=5]]"), max_tokens=20)
    host.drain()
    assert host.code(3) == "insufficient_vram"
    assert host.ids(3) == counted(5)
    assert (host.ids(1), host.ids(2)) == (counted(20), counted(20))
    host.check_nothing_is_held()


def test_s20_twice_in_a_row_with_nothing_beside_is_the_devices_fault() -> None:
    host = Simulation()
    ids = chat_ids("[[fake fault=oom]]")
    host.ask(1, ids)
    host.drain()
    assert host.code(1) == "insufficient_vram"
    host.ask(2, (1, 2))
    host.drain()
    host.ask(3, ids)
    host.drain()
    host.ask(4, ids)
    with pytest.raises(DeviceDied):
        host.drain()


def test_a_request_with_nan_leaves_nothing_in_the_store() -> None:
    host = Simulation(page_tokens=8)
    ids = chat_ids("[[fake tokens=40 fault=nan at=20]]")
    host.ask(1, ids, max_tokens=40)
    host.drain()
    assert host.code(1) == "nan_logits"
    assert host.engine.kv.budget.accounts["m"].store.num_nodes == 0
    host.ask(2, ids, max_tokens=40)
    host.drain()
    assert host.counter("nan_total") == 2
    host.check_nothing_is_held()


def test_nan_in_two_rows_or_two_new_requests_is_told_of_the_model() -> None:
    first = chat_ids("[[fake fault=nan]]")
    later = chat_ids("[[fake tokens=9 fault=nan at=5]]")
    host = Simulation()
    for request, ids in enumerate((first, (1, 2), later, first, (1, 2), first)):
        host.ask(request, ids)
        host.drain()
    assert "model computes NaN" not in host.written.getvalue()
    host.ask(10, first)
    host.drain()
    assert host.written.getvalue().count("model computes NaN") == 1
    both = Simulation()
    both.ask(1, later)
    both.ask(2, later, cache_salt="other")
    both.drain()
    assert both.written.getvalue().count("model computes NaN") == 1


# ---- other answers ------------------------------------------------------------------


def test_logprobs_come_with_their_tokens() -> None:
    host = Simulation()
    host.answer(1, (1, 2), max_tokens=3, sampling=Sampling(logprobs=2))
    host.answer(2, (1, 3), max_tokens=3, sampling=Sampling(logprobs=0))
    host.answer(3, (1, 4), max_tokens=3)
    assert all(len(r.logprobs) == 1 and len(r.top[0]) == 2 for r in host.rows(1))
    assert all(len(r.logprobs) == 1 and r.top == () for r in host.rows(2))
    assert all(r.logprobs == r.top == () for r in host.rows(3))


def test_prompt_scores_cover_every_token_but_the_first() -> None:
    host = Simulation({"prefill_chunk": 30})
    scored = Sampling(prompt_logprobs=1)
    host.answer(1, LONG)
    host.answer(2, LONG, sampling=scored, max_tokens=0)
    messages = host.scores(2)
    assert [m.start for m in messages] == [1, 30, 60, 90]
    assert sum(len(m.logprobs) for m in messages) == 99
    assert [t[0][0] for m in messages for t in m.top] == list(LONG[1:])
    end = host.ended(2)
    assert end == Finished(2, "length", 100, 0, 0)
    host.answer(3, LONG, sampling=Sampling(prompt_logprobs=0), max_tokens=2)
    assert host.scores(3)[0].top == ()
    assert host.ids(3) == counted(2)


def test_scores_are_told_once_even_after_a_preemption() -> None:
    host = Simulation(page_tokens=10, pages=10)
    host.ask(1, LONG[:38], max_tokens=40)
    host.ask(2, (5,) * 38, max_tokens=40, sampling=Sampling(prompt_logprobs=0))
    host.drain()
    assert host.counter("preempted_total") >= 1
    assert sum(len(m.logprobs) for m in host.scores(2)) == 37


def test_a_vector_ends_its_request() -> None:
    host = Simulation(kind="embedding")
    host.ask(1, LONG, embed=True, max_tokens=0)
    host.drain()
    assert len(host.vectors(1)) == 1
    assert host.ended(1) == Finished(1, "stop", 100, 0, 0)
    host.check_nothing_is_held()


def test_a_grammar_that_makes_no_sense_is_refused_at_submit() -> None:
    host = Simulation()
    assert error_code(host.ask(1, (1, 2), grammar="{")) == "invalid_request_error"
    assert not host.engine.busy
    assert isinstance(host.ask(2, (1, 2), grammar='{"regex": "a"}'), Accepted)


def test_a_resumed_request_that_was_complete_is_finished_at_once() -> None:
    host = Simulation()
    host.ask(1, (1, 2, 7, 7, 7), num_prompt=2, max_tokens=3)
    host.step()
    assert host.ended(1) == Finished(1, "length", 2, 3, 0)
    assert host.backend.steps == []
