"""The convicted: how long, how many, and who may name them."""

from __future__ import annotations

from neurond.quarantine import MOST, Quarantine


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def name(number: int) -> str:
    return f"{number:032x}"


def test_s16_a_convicted_request_is_known_until_its_time_is_over() -> None:
    clock = Clock()
    store = Quarantine(60.0, clock=clock)
    assert store.add(name(1), "tiny")
    held = {"fingerprint": name(1), "model": "tiny", "until_s": 1060.0}
    assert store.facts() == [held]
    clock.now_s = 1059.9
    assert store.facts() == [held]
    clock.now_s = 1060.0
    assert store.facts() == []
    assert store.total == 1


def test_who_is_told_again_stays_longer_and_is_no_news() -> None:
    clock = Clock()
    store = Quarantine(60.0, clock=clock)
    store.add(name(1), "tiny")
    clock.now_s += 50
    assert not store.add(name(1), "tiny")
    assert [entry["until_s"] for entry in store.facts()] == [1110.0]
    assert store.total == 1


def test_only_the_newest_stay() -> None:
    store = Quarantine(60.0)
    for number in range(MOST + 3):
        store.add(name(number), "tiny")
    held = [entry["fingerprint"] for entry in store.facts()]
    assert held == [name(number) for number in range(3, MOST + 3)]


def test_what_is_no_fingerprint_is_not_kept() -> None:
    store = Quarantine(60.0)
    for odd in ("", "x" * 32, name(1).upper().replace("0", "A"), name(1) + "0"):
        assert not store.add(odd, "tiny")
    assert not store.add(name(1), "m" * 300)
    assert store.facts() == []
    assert store.total == 0


def test_without_a_lifetime_nothing_is_kept() -> None:
    store = Quarantine(0.0)
    assert not store.add(name(1), "tiny")
    assert store.facts() == []
