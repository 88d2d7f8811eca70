"""A device life after life: every rung has its deadline, every end its consequence."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from ipc.messages import Fault
from ipc.status import Phase
from neurond.devicelife import oom_kills
from neurond.recovery import Part
from neurond.states import MOST_UNPRODUCTIVE, DeviceEvent, DeviceState
from neurond.suspects import NOBODY, Charge, Kill
from tests.neurond.deviceplay import Play, playing
from tests.neurond.slotkit import running, until

ASSERT = Fault("device", "AcceleratorError", 710, ("device-side assert",), "m", 1, (7,))


def tick_twice(play: Play) -> None:
    for _ in range(2):
        play.slot.tick(late=False)


# ---- every rung has a deadline of its own (S13)


@running
async def test_s13_a_process_that_never_says_hello_is_killed() -> None:
    async with playing(boot_s=0.05) as play:
        await until(lambda: play.slot.pid is not None)
        await asyncio.sleep(0.06)
        tick_twice(play)
        assert await play.ends() == ("boot took longer than its deadline", NOBODY)
        await play.is_in(DeviceState.STARTING, 2)


@running
async def test_s13_a_reload_that_never_ends_is_killed() -> None:
    async with playing(load_s=0.02) as play:
        play.models = 2
        await play.hello()
        tick_twice(play)
        assert play.slot.state is DeviceState.STARTING
        await asyncio.sleep(0.07)  # two models and one to spare
        tick_twice(play)
        assert await play.ends() == ("reload took longer than its deadline", NOBODY)


@running
async def test_s13_a_kill_without_effect_is_written_off_and_the_device_failed() -> None:
    async with playing(kill_s=0.05) as play:
        play.stage.is_immortal = True
        await play.serves()
        play.shows(Phase.DECODE, 7, 8, deadline_s=0.001)
        await asyncio.sleep(0.002)
        tick_twice(play)
        assert play.slot.state is DeviceState.DYING
        await asyncio.sleep(0.06)
        play.slot.tick(late=False)
        await play.is_in(DeviceState.FAILED)
        reason, charge = play.downs[-1]
        assert reason == play.slot.reason == "SIGKILL has no effect"
        assert charge.suspects == ((7, 1), (8, 2))  # it hung in their step


@running
async def test_s13_one_that_is_killed_while_it_is_forked_dies_as_it_comes() -> None:
    async with playing(kill_s=0.05) as play:
        play.stage.gate.clear()
        await until(lambda: play.stage.link is not None)
        play.slot.respawn("an operator's order")
        await asyncio.sleep(0.06)
        play.slot.tick(late=False)
        assert play.slot.state is DeviceState.DYING  # the fork has its own deadline
        play.stage.gate.set()
        assert await play.ends() == ("an operator's order", NOBODY)
        await play.is_in(DeviceState.STARTING, 2)


@running
async def test_s13_ten_starts_in_a_row_that_fail_take_the_device_out() -> None:
    async with playing() as play:
        history = play.slot.history
        play.stage.fails = True
        for _ in range(9):
            history.fork_failed()
        await play.is_in(DeviceState.FAILED)
        assert play.slot.reason.startswith("10 starts in a row failed: it could not be")
        assert history.deaths == 1


@running
async def test_s35_a_new_life_waits_until_the_memory_of_the_last_is_back() -> None:
    async with playing() as play:
        await play.serves()
        play.emits()
        play.memory.clear()
        play.child.kill()
        await play.ends()
        await asyncio.sleep(0.05)
        assert (play.slot.state, play.slot.generation) == (DeviceState.BACKOFF, 1)
        play.memory.set()
        await play.is_in(DeviceState.STARTING, 2)


@running
async def test_a_stop_does_not_wait_for_memory() -> None:
    async with playing() as play:
        await play.serves()
        play.memory.clear()
        play.child.kill()
        await play.ends()
        play.slot.stop()
        assert play.slot.gone.is_set()
        await asyncio.sleep(0.02)
        assert (play.slot.state, play.slot.generation) == (DeviceState.STOPPED, 1)


# ---- who is charged (S16)


@running
async def test_s12_s16_a_step_past_its_deadline_charges_who_was_in_it() -> None:
    async with playing() as play:
        await play.serves()
        play.shows(Phase.DECODE, 7, 8, deadline_s=0.001)
        await asyncio.sleep(0.002)
        play.slot.tick(late=True)  # the host was frozen: that says nothing
        play.slot.tick(late=False)
        assert play.slot.state is DeviceState.READY
        play.slot.tick(late=False)
        reason, charge = await play.ends()
        assert reason == "decode took longer than its deadline"
        assert charge == Charge(((7, 1), (8, 2)))
        assert play.slot.history.faults == {"hang": 1}


@running
async def test_s16_a_crash_while_one_runs_alone_convicts_it() -> None:
    async with playing() as play:
        await play.serves()
        play.shows(Phase.TRIAL, 7)
        play.child.kill(signal.SIGSEGV)
        assert (await play.ends())[1] == Charge(convicted=(7,))
        history = play.slot.history
        assert (history.num_suspects, history.num_convicted) == (0, 1)
        assert history.faults == {"crash": 1}


@running
async def test_s16_s17_a_conviction_speaks_neither_for_nor_against_the_device() -> None:
    async with playing() as play:
        history = play.slot.history
        for phase, pause_s in ((Phase.DECODE, 0.25), (Phase.TRIAL, 0.25)):
            await play.serves()
            play.shows(phase, 7)
            play.child.kill(signal.SIGSEGV)
            await play.ends()
            assert history.pause_s() == pause_s
            break_pause(play)
            await until(lambda: play.slot.pid is not None)


@running
async def test_s16_a_kill_from_outside_charges_nobody() -> None:
    async with playing() as play:
        before = oom_kills()
        await play.serves()
        play.shows(Phase.TRIAL, 7)
        play.child.kill()
        charge = (await play.ends())[1]
        assert charge == NOBODY or oom_kills() > before


@running
async def test_s16_evidence_from_outside_spares_who_ran() -> None:
    async with playing() as play:
        await play.serves()
        play.shows(Phase.TRIAL, 7)
        play.spared = "Xid 95"
        play.child.kill(signal.SIGABRT)
        assert (await play.ends())[1] == NOBODY


@running
async def test_an_ordered_end_is_nobodys_fault_and_no_unproductive_life() -> None:
    async with playing() as play:
        for generation in range(1, MOST_UNPRODUCTIVE + 2):
            await play.is_in(DeviceState.STARTING, generation)
            await play.serves()
            play.shows(Phase.DECODE, 7)
            play.slot.kill("respawn was ordered", Kill.ORDER)
            assert await play.ends() == ("respawn was ordered", NOBODY)
        history = play.slot.history
        assert (history.faults, history.last_fault) == ({}, None)
        assert history.deaths == MOST_UNPRODUCTIVE + 1


@running
async def test_s01_last_words_are_remembered_and_why_it_is_away_stays_shown() -> None:
    async with playing() as play:
        await play.serves()
        play.shows(Phase.DECODE, 7)
        play.says(ASSERT)
        play.child.kill(signal.SIGABRT)
        assert await play.ends() == (
            "device fault, AcceleratorError",
            Charge(((7, 1),)),
        )
        assert play.heard == [ASSERT]
        last = play.slot.history.last_fault
        assert last is not None
        assert (last["class"], last["type"]) == ("device", "AcceleratorError")
        await play.is_in(DeviceState.STARTING, 2)
        assert play.slot.reason == "device fault, AcceleratorError"
        await play.serves()
        assert play.slot.reason == ""


# ---- taken out, and another try


@running
async def test_s36_a_device_that_is_taken_out_is_not_waited_for() -> None:
    async with playing() as play:
        play.stage.is_immortal = True
        await play.serves()
        play.shows(Phase.DECODE, 7)
        play.spared = "Xid 79"
        play.slot.take_out("off the bus", "reboot the node")
        assert play.slot.state is DeviceState.FAILED
        assert (play.slot.reason, play.slot.cure) == ("off the bus", "reboot the node")
        assert play.downs == [("off the bus", NOBODY)]
        play.slot.reset()
        assert play.slot.cure == ""
        await play.is_in(DeviceState.STARTING, 2)


@running
async def test_a_device_can_be_taken_out_while_it_is_away() -> None:
    async with playing() as play:
        await play.serves()
        play.memory.clear()
        play.child.kill()
        await play.ends()
        play.slot.take_out("ECC", "reset the GPU")
        assert play.slot.state is DeviceState.FAILED
        play.memory.set()
        await asyncio.sleep(0.02)
        assert (play.slot.state, play.slot.generation) == (DeviceState.FAILED, 1)
        play.slot.take_out("worse", "reboot the node")
        assert (play.slot.reason, play.slot.cure) == ("worse", "reboot the node")


@running
async def test_s39_a_start_that_may_go_better_later_never_takes_a_device_out() -> None:
    async with playing() as play:
        history = play.slot.history
        for _ in range(MOST_UNPRODUCTIVE + 1):
            await until(lambda: play.slot.pid is not None)
            play.slot.expects("802: the fabric manager isn't ready", is_patient=True)
            play.child.kill(signal.SIGABRT)
            await play.ends()
            assert history.why_hopeless() == ""
            assert history.pause_s() > 0
            break_pause(play)
        await until(lambda: play.slot.pid is not None)
        await play.hello()
        assert history.pause_s() == 0.0


def break_pause(play: Play) -> None:
    """The next life begins at once."""
    assert play.slot._coming is not None
    play.slot._stop_coming()
    play.slot.spawn()


@running
async def test_s19_a_life_that_computes_wrongly_is_unproductive_whatever_it_said() -> (
    None
):
    async with playing() as play:
        await play.serves()
        play.emits(100)
        play.shows(Phase.DECODE, 7)
        play.slot.computes_wrongly("wrong result")
        assert await play.ends() == ("wrong result", NOBODY)
        assert play.slot.history.pause_s() > 0
        assert play.slot.history.faults == {"wrong_result": 1}


# ---- how long it took


@running
async def test_the_parts_of_a_recovery_are_told() -> None:
    async with playing() as play:
        await play.serves()
        assert play.slot.history.recovery.facts() is None
        play.emits()
        play.child.kill()
        await play.ends()
        await play.is_in(DeviceState.STARTING, 2)
        await play.serves()
        play.slot.tick(late=False)
        recovery = play.slot.history.recovery
        assert recovery.awaits_token
        play.emits()
        play.slot.tick(late=False)
        told = recovery.facts()
        assert told is not None
        assert list(told) == [part.key for part in Part]
        assert all(value is not None and value < 5 for value in told.values())
        totals = play.slot.history.states.totals_s()
        assert totals["ready"] > 0


@running
async def test_a_hang_is_counted_from_when_it_last_moved() -> None:
    async with playing() as play:
        await play.serves()
        play.shows(Phase.DECODE, 7, deadline_s=0.05)
        await asyncio.sleep(0.08)
        tick_twice(play)
        told = play.slot.history.recovery.facts()
        assert told is not None
        detect_s = told["detect_s"]
        assert detect_s is not None
        assert detect_s >= 0.07
        await play.ends()
        assert play.slot.history.recovery.series()["detect"]["sum"] >= 0.07


def test_the_kernels_count_is_read_and_its_absence_is_none() -> None:
    assert oom_kills() >= 0
    assert oom_kills(Path("/nowhere")) == 0


@running
async def test_events_of_an_end_come_in_order() -> None:
    async with playing() as play:
        await play.serves()
        play.emits()
        play.child.kill()
        await play.is_in(DeviceState.STARTING, 2)
        seen = [DeviceEvent.SPAWN, DeviceEvent.SERVING, DeviceEvent.EXITED]
        assert play.events == [*seen, DeviceEvent.SPAWN]
