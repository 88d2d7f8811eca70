"""Whom the end of a life charges: one case per way to end, and what always holds."""

from __future__ import annotations

import itertools
import signal
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.child import EXIT_OK, EXIT_TEMPORARY, Exit
from ipc.messages import Fault
from ipc.status import Phase
from neurond.suspects import MOST_GROUPS, NOBODY, Charge, Ending, Kill, judge

ASSERT = ("AcceleratorError: CUDA error: device-side assert triggered",)
SEGV = Exit(None, signal.SIGSEGV)
KILLED = Exit(None, signal.SIGKILL)


def fault(
    *requests: int,
    kind: str = "device",
    code: int = 710,
    chain: tuple[str, ...] = ASSERT,
) -> Fault:
    return Fault(kind, "AcceleratorError", code, chain, "tiny", 1, requests)


def ending(
    phase: Phase = Phase.DECODE, requests: tuple[int, ...] = (7,), **more: Any
) -> Ending:
    return Ending(more.pop("exit", SEGV), phase, requests, **more)


def charge(given: Ending) -> Charge:
    return judge(given, itertools.count(1))


ENDS: list[tuple[str, Ending, bool]] = [
    ("a crash in a step", ending(), True),
    ("a crash in a prefill", ending(Phase.PREFILL), True),
    ("a crash in the probe after a step", ending(Phase.PROBE), True),
    ("a crash while nothing runs", ending(Phase.IDLE, ()), False),
    ("a crash while a model loads", ending(Phase.LOAD, ()), False),
    ("an exit by itself", ending(exit=Exit(EXIT_TEMPORARY, None)), True),
    ("an orderly exit", ending(exit=Exit(EXIT_OK, None)), False),
    ("an exit that another took", ending(exit=Exit(None, None)), False),
    ("SIGABRT", ending(exit=Exit(None, signal.SIGABRT)), True),
    ("SIGTERM from outside", ending(exit=Exit(None, signal.SIGTERM)), False),
    ("SIGKILL from outside", ending(exit=KILLED), False),
    ("the kernel's, for memory", ending(exit=KILLED, num_oom_kills=1), True),
    ("past a deadline", ending(exit=KILLED, killed=Kill.DEADLINE), True),
    ("the same, and it won't die", ending(exit=None, killed=Kill.DEADLINE), True),
    ("past a deadline, idle", ending(Phase.BOOT, (), killed=Kill.DEADLINE), False),
    ("an operator's order", ending(exit=KILLED, killed=Kill.ORDER), False),
    ("it talked nonsense", ending(exit=KILLED, killed=Kill.OTHER), False),
    ("evidence from outside", ending(exit=KILLED, killed=Kill.EVIDENCE), True),
    ("evidence that excuses", ending(is_excused=True), False),
    ("an assert", ending(fault=fault(7)), True),
    ("an assert of nobody", ending(Phase.IDLE, (), fault=fault()), False),
    ("its group died", ending(fault=fault(7, kind="group", code=-1)), False),
    ("ECC", ending(fault=fault(7, code=214, chain=())), False),
    ("NVLink", ending(fault=fault(7, code=220, chain=())), False),
    ("contained", ending(fault=fault(7, code=226, chain=())), False),
    ("a start-up code", ending(fault=fault(7, code=802, chain=())), False),
    ("a full context", ending(fault=fault(7, kind="capacity", code=2)), False),
]


@pytest.mark.parametrize(
    ("end", "is_charged"), [row[1:] for row in ENDS], ids=[row[0] for row in ENDS]
)
def test_s16_only_what_a_request_can_have_done_is_charged(
    end: Ending, is_charged: bool
) -> None:
    assert (charge(end) != NOBODY) is is_charged
    if is_charged:
        assert charge(end).suspects == ((7, 1),)


def test_s16_who_kills_while_alone_is_convicted_and_not_before() -> None:
    assert charge(ending(Phase.DECODE, (7,))) == Charge(((7, 1),))
    assert charge(ending(Phase.TRIAL, (7,))) == Charge(convicted=(7,))


def test_s16_up_to_eight_are_alone_and_more_share_groups() -> None:
    eight = charge(ending(requests=tuple(range(8)))).suspects
    assert sorted(group for _, group in eight) == list(range(1, 9))
    twenty = Counter(g for _, g in charge(ending(requests=tuple(range(20)))).suspects)
    assert len(twenty) == MOST_GROUPS
    assert set(twenty.values()) == {2, 3}


def test_s16_a_group_that_kills_is_halved() -> None:
    suspects = charge(ending(Phase.TRIAL, (1, 2, 3, 4, 5))).suspects
    assert suspects == ((1, 1), (2, 1), (3, 1), (4, 2), (5, 2))


def test_last_words_name_who_ran() -> None:
    end = ending(Phase.DECODE, (1, 2, 3), fault=fault(2, 2))
    assert charge(end).suspects == ((2, 1),)


def test_last_words_in_a_trial_convict_too() -> None:
    assert charge(ending(Phase.TRIAL, (2,), fault=fault(2))).convicted == (2,)


ENDINGS = st.builds(
    Ending,
    exit=st.sampled_from([None, SEGV, KILLED, Exit(EXIT_TEMPORARY, None)]),
    phase=st.sampled_from(list(Phase)),
    requests=st.lists(st.integers(0, 2**64 - 1), max_size=40).map(tuple),
    fault=st.none() | st.builds(fault, st.integers(0, 9)),
    killed=st.none() | st.sampled_from(list(Kill)),
    num_oom_kills=st.integers(0, 1),
    is_excused=st.booleans(),
)


@given(ENDINGS)
def test_nobody_is_charged_twice_and_nobody_else_is(end: Ending) -> None:
    told = charge(end)
    named = [number for number, _ in told.suspects] + list(told.convicted)
    assert len(named) == len(set(named))
    assert not named or set(named) == set(end.ids)
    assert not (told.suspects and told.convicted)
    if told.convicted:
        assert end.phase is Phase.TRIAL
        assert len(end.ids) == 1


@given(st.lists(ENDINGS, max_size=8))
def test_the_number_of_a_group_is_never_used_again(ends: list[Ending]) -> None:
    groups = itertools.count(1)
    used: set[int] = set()
    for end in ends:
        mine = {group for _, group in judge(end, groups).suspects}
        assert 0 not in mine
        assert not used & mine
        used |= mine


@given(st.integers(1, 300), st.data())
def test_s16_a_killer_among_many_is_alone_after_few_deaths(
    count: int, data: st.DataObject
) -> None:
    """Each death narrows it down; the innocent are never convicted."""
    killer = data.draw(st.integers(0, count - 1))
    groups = itertools.count(1)
    told = judge(ending(requests=tuple(range(count))), groups)
    deaths = 1
    while not told.convicted:
        mine = dict(told.suspects)
        ran = tuple(n for n, group in told.suspects if group == mine[killer])
        told = judge(ending(Phase.TRIAL, ran), groups)
        deaths += 1
    assert told.convicted == (killer,)
    assert deaths <= 8
