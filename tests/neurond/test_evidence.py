from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurond import xids
from neurond.evidence import OUR_KILL_S, Evidence, Verdict
from neurond.sightings import AGAIN_S, WINDOW_S
from neurond.xids import Cure, Measure, Sighting, XidClass

OURS, THEIRS = 100, 666
M = Measure


def living(*, is_grouped: bool = False) -> Evidence:
    evidence = Evidence(is_grouped=is_grouped)
    evidence.born(1, OURS)
    return evidence


def see(evidence: Evidence, xid: int, at_s: float = 0.0, **told: int | bool) -> Verdict:
    verdict = evidence.saw(Sighting(xid, **told), at_s)  # type: ignore[arg-type]
    assert verdict is not None
    return verdict


def measure(xid: int, **told: int | bool) -> tuple[Measure, Cure]:
    verdict = see(living(), xid, **told)
    return verdict.measure, verdict.cure


@pytest.mark.parametrize(
    ("xid", "recovery", "expected"),
    [
        (13, None, (M.RESPAWN, Cure.NONE)),
        (43, None, (M.RESPAWN, Cure.NONE)),
        (45, None, (M.WATCH, Cure.NONE)),
        (63, None, (M.WATCH, Cure.RESET)),
        (64, None, (M.DRAIN_OUT, Cure.RESET)),
        (94, None, (M.RESPAWN, Cure.NONE)),
        (95, None, (M.OUT, Cure.RESET)),
        (79, None, (M.OUT, Cure.REBOOT)),
        (48, None, (M.OUT, Cure.RESET)),
        (48, 0, (M.RESPAWN, Cure.NONE)),
        (48, 1, (M.OUT, Cure.RESET)),
        (48, 2, (M.OUT, Cure.REBOOT)),
        (48, 4, (M.OUT, Cure.RESET)),
        (48, 77, (M.OUT, Cure.REBOOT)),
        (119, None, (M.OUT, Cure.RESET)),
        (119, 0, (M.RESPAWN, Cure.NONE)),
        (154, 4, (M.DRAIN_OUT, Cure.RESET)),
        (154, None, (M.WATCH, Cure.NONE)),
        (121, None, (M.WATCH, Cure.NONE)),
        (121, 1, (M.OUT, Cure.RESET)),
        (74, None, (M.GROUP, Cure.NONE)),
        (149, None, (M.GROUP, Cure.RESET)),
    ],
)
def test_what_a_first_sighting_leads_to(
    xid: int, recovery: int | None, expected: tuple[Measure, Cure]
) -> None:
    told = {} if recovery is None else {"recovery": recovery}
    assert measure(xid, **told) == expected


def test_what_is_known_already_is_not_done_twice() -> None:
    evidence = living()
    assert see(evidence, 13).measure is M.RESPAWN
    again = see(evidence, 13, 1.0, pid=OURS)
    assert (again.measure, again.is_news) == (M.WATCH, False)


def test_a_worse_xid_overrules_and_a_lesser_one_does_not() -> None:
    evidence = living()
    assert see(evidence, 94).measure is M.RESPAWN
    evidence.died(1, 0.1)
    evidence.born(2, 101)
    assert see(evidence, 95, 3.0).measure is M.OUT
    assert see(evidence, 13, 3.1).measure is M.WATCH
    assert evidence.is_out
    harder = see(evidence, 79, 4.0)
    assert (harder.measure, harder.cure) == (M.OUT, Cure.REBOOT)
    assert see(evidence, 95, 4.5).cure is Cure.REBOOT


def test_a_double_bit_error_beside_a_remap_needs_a_reset_whatever_is_recommended() -> (
    None
):
    first = living()
    see(first, 63)
    assert see(first, 48, 2.0, recovery=0).measure is M.OUT
    second = living()
    assert see(second, 48, recovery=0).measure is M.RESPAWN
    assert see(second, 63, 2.0).measure is M.OUT


def test_a_second_halt_within_an_hour_takes_the_device_out() -> None:
    evidence = living()
    assert see(evidence, 119, 0.0, recovery=0).measure is M.RESPAWN
    evidence.died(1, 0.1)
    evidence.born(2, 101)
    assert see(evidence, 62, 600.0, recovery=0).measure is M.OUT
    rare = living()
    see(rare, 119, 0.0, recovery=0)
    rare.died(1, 0.1)
    rare.born(2, 101)
    assert see(rare, 119, AGAIN_S + 9, recovery=0).measure is M.RESPAWN


def test_a_clean_up_after_our_own_kill_is_noise() -> None:
    evidence = living()
    evidence.killed(10.0)
    assert evidence.saw(Sighting(45), 10.0 + OUR_KILL_S) is None
    assert evidence.saw(Sighting(45), 11.0 + OUR_KILL_S) is not None


def test_an_xid_of_a_dead_life_does_not_hit_its_successor() -> None:
    evidence = living()
    evidence.died(1, 0.0)
    evidence.born(2, 101)
    assert see(evidence, 31, 1.0, pid=OURS).measure is M.WATCH
    assert see(evidence, 31, 4.0).measure is M.WATCH
    assert see(evidence, 31, 4.5, pid=101).measure is M.RESPAWN


def test_the_process_of_another_is_watched_unless_the_whole_gpu_is_concerned() -> None:
    assert measure(13, pid=THEIRS) == (M.WATCH, Cure.NONE)
    assert measure(13, others=True) == (M.WATCH, Cure.NONE)
    assert measure(94, pid=THEIRS) == (M.WATCH, Cure.NONE)
    assert measure(95, pid=THEIRS) == (M.OUT, Cure.RESET)
    assert measure(48, pid=THEIRS, recovery=0) == (M.RESPAWN, Cure.NONE)


def test_s37_memory_errors_spare_whoever_ran_before_and_after_the_death() -> None:
    before = living()
    see(before, 95)
    before.died(1, WINDOW_S)
    assert before.spares(1, WINDOW_S).startswith("Xid 95")
    after = living()
    after.died(1, 0.0)
    assert after.spares(1, 0.0) == ""
    after.born(2, 101)
    see(after, 94, WINDOW_S)
    assert after.spares(1, WINDOW_S).startswith("Xid 94")
    late = living()
    late.died(1, 0.0)
    see(late, 94, WINDOW_S + 0.1)
    assert late.spares(1, 9.0) == ""


def test_the_fault_of_an_application_spares_nobody() -> None:
    evidence = living()
    see(evidence, 31)
    assert evidence.spares(1, 0.0) == ""
    assert evidence.spares(7, 0.0) == ""


def test_a_link_seen_twice_is_out_for_a_group_and_shown_for_a_lone_gpu() -> None:
    lone, rank = living(), living(is_grouped=True)
    for evidence in (lone, rank):
        assert see(evidence, 74).measure is M.GROUP
        evidence.died(1, 0.1)
        evidence.born(2, 101)
    assert see(lone, 74, 100.0).measure is M.WATCH
    assert see(rank, 74, 100.0).measure is M.OUT
    assert see(living(is_grouped=True), 149).measure is M.OUT


def test_the_recovery_action_counts_alone_and_is_never_taken_back() -> None:
    evidence = living()
    assert evidence.recovery(0) is None
    verdict = evidence.recovery(1)
    assert verdict is not None
    assert (verdict.measure, verdict.cure) == (M.OUT, Cure.RESET)
    assert evidence.recovery(1) is None
    eased = evidence.recovery(0)
    assert eased is not None
    assert eased.measure is M.WATCH
    assert evidence.is_out


def test_a_device_drains_once_and_goes_at_once_when_it_gets_worse() -> None:
    evidence = living()
    assert see(evidence, 156).measure is M.DRAIN_OUT
    assert evidence.is_draining
    assert not evidence.is_out
    assert see(evidence, 156, 20.0).measure is M.WATCH
    assert see(evidence, 95, 21.0).measure is M.OUT


def test_an_operator_clears_the_record_but_not_what_is_shown() -> None:
    evidence = living()
    see(evidence, 95)
    evidence.cured()
    assert (evidence.is_out, evidence.cure, evidence.cure_wanted) == (False, 0, 0)
    assert [line.xid for line in evidence.sightings.shown] == [95]
    evidence.died(1, 0.1)
    evidence.born(2, 101)
    assert see(evidence, 95, 9.0).measure is M.OUT


def test_two_faults_within_an_hour_with_other_requests_point_at_the_device() -> None:
    evidence = living()
    assert not evidence.faulted(frozenset({1, 2}), 0.0)
    assert not evidence.faulted(frozenset({2}), 10.0)
    assert evidence.faulted(frozenset({7}), 20.0)
    assert not evidence.faulted(frozenset(), 30.0)
    assert not evidence.faulted(frozenset({9}), 30.0 + 2 * AGAIN_S)


# ---- whatever the order and the delays


@dataclass(frozen=True)
class Seen:
    after_s: float
    sighting: Sighting


@dataclass(frozen=True)
class Death:
    after_s: float


KNOWN = sorted(xids.XIDS)
ECHOES = [x for x in KNOWN if xids.row(x).kind is XidClass.ECHO]
ECC = [x for x in KNOWN if xids.row(x).kind in (XidClass.ECC, XidClass.ECC_CONTAINED)]
OWN_AFFAIRS = [x for x in (*KNOWN, 999) if not xids.row(x).whole_gpu]


def seen(numbers: list[int], pid: st.SearchStrategy[int | None]) -> st.SearchStrategy:
    recovery = st.sampled_from([None, None, 0, 1, 2, 4, 9])
    sighting = st.builds(Sighting, st.sampled_from(numbers), pid, recovery)
    return st.builds(Seen, st.floats(0, 8), sighting)


DEATHS = st.builds(Death, st.floats(0, 8))
ANY_PID = st.sampled_from([None, OURS, OURS + 1, THEIRS])


class Play:
    """A device whose lives follow each other; keeps every verdict and each end."""

    def __init__(self) -> None:
        self.evidence = Evidence()
        self.now_s = 0.0
        self.generation = 0
        self.verdicts: list[Verdict] = []
        self.ends: dict[int, float] = {}
        self.next_life()

    def next_life(self) -> None:
        self.generation += 1
        self.evidence.born(self.generation, OURS + self.generation - 1)

    def run(self, story: list[Seen | Death]) -> None:
        for event in story:
            self.now_s += event.after_s
            if isinstance(event, Death):
                self.ends[self.generation] = self.now_s
                self.evidence.died(self.generation, self.now_s)
                self.next_life()
                continue
            verdict = self.evidence.saw(event.sighting, self.now_s)
            if verdict is not None:
                self.verdicts.append(verdict)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(seen([*KNOWN, 999], ANY_PID), DEATHS), max_size=12))
def test_nothing_is_ever_downgraded(story: list[Seen | Death]) -> None:
    play = Play()
    was_out, cure = False, Cure.NONE
    done: dict[int, Measure] = {}
    for event in story:
        before = len(play.verdicts)
        play.run([event])
        evidence = play.evidence
        assert evidence.is_out or not was_out
        assert evidence.cure >= cure
        for verdict in play.verdicts[before:]:
            if verdict.measure is M.WATCH:
                continue
            assert not was_out or (verdict.measure is M.OUT and verdict.cure > cure)
            if verdict.measure < M.DRAIN_OUT:
                assert verdict.measure > done.get(verdict.generation, M.WATCH)
                done[verdict.generation] = verdict.measure
        was_out, cure = evidence.is_out, evidence.cure


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(seen(ECHOES, ANY_PID), DEATHS), max_size=12))
def test_an_echo_never_kills(story: list[Seen | Death]) -> None:
    play = Play()
    play.run(story)
    assert {verdict.measure for verdict in play.verdicts} <= {M.WATCH}
    assert not play.evidence.is_out


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(seen(OWN_AFFAIRS, st.just(THEIRS)), DEATHS), max_size=12))
def test_a_foreign_process_never_kills(story: list[Seen | Death]) -> None:
    play = Play()
    play.run(story)
    assert {verdict.measure for verdict in play.verdicts} <= {M.WATCH}
    assert not any(play.evidence.spares(g, play.now_s) for g in play.ends)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.one_of(seen(KNOWN, ANY_PID), DEATHS), max_size=6),
    st.sampled_from(ECC),
    st.sampled_from([None, OURS]),
    st.floats(0, WINDOW_S),
    st.booleans(),
    st.lists(seen(KNOWN, st.just(THEIRS)), max_size=3),
)
def test_memory_errors_never_charge(  # noqa: PLR0913, PLR0917  what may vary
    story: list[Seen | Death],
    xid: int,
    pid: int | None,
    apart_s: float,
    is_before: bool,
    after: list[Seen],
) -> None:
    """An ECC error of a life, anywhere in its story, up to a window from its end."""
    play = Play()
    play.run(story)
    dying = play.generation
    own = None if pid is None else OURS + dying - 1
    error = Sighting(xid, own)
    if is_before:
        play.run([Seen(0, error), Death(apart_s)])
    else:
        play.run([Death(0), Seen(apart_s, error)])
    play.run(list(after))
    assert play.evidence.spares(dying, play.now_s)
