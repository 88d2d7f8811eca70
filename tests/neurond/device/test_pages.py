from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from neurond.device.pages import Pages


def test_a_sequence_grows_into_the_page_behind_its_last() -> None:
    pages = Pages(20)
    assert pages.take(3, "a", room=2) == [0, 1, 2]
    assert pages.take(2, "b") == [5, 6]
    assert pages.take(1, "a", after=2) == [3]
    assert pages.take(1, "b", after=6) == [7]


def test_room_is_left_free_as_long_as_there_is_other_room() -> None:
    pages = Pages(8)
    assert pages.take(2, "a", room=4) == [0, 1]
    assert pages.take(2, "b") == [6, 7]
    assert pages.take(2, "c") == [2, 3]
    assert pages.take(2, "a", after=1) == [4, 5]
    assert pages.num_free == 0


def test_the_first_place_that_is_long_enough_is_taken() -> None:
    pages = Pages(12)
    first = pages.take(2, "a")
    pages.take(1, "b")
    pages.unclaim("a")
    pages.drop(first)
    assert pages.take(3, "c") == [3, 4, 5]
    assert pages.take(2, "d") == [0, 1]


def test_a_run_that_nothing_can_hold_is_pieced_together() -> None:
    pages = Pages(6)
    runs = [pages.take(1, name) for name in "abcdef"]
    for index in (0, 2, 3):
        pages.unclaim("abcdef"[index])
        pages.drop(runs[index])
    assert pages.take(3, "g") == [2, 3, 0]


def test_a_page_is_free_again_with_its_last_reference() -> None:
    pages = Pages(2)
    pages.take(2, "a")
    pages.share([0])
    pages.drop([0, 1])
    assert (pages.num_free, pages.num_refs(0), pages.num_refs(1)) == (1, 1, 0)
    pages.drop([0])
    assert pages.num_free == 2


def test_what_only_the_store_refers_to_is_idle() -> None:
    pages = Pages(2)
    pages.take(1, "a")
    pages.keep(0)
    assert (pages.num_idle, pages.is_idle(0)) == (0, False)
    pages.drop([0])
    assert (pages.num_idle, pages.is_idle(0)) == (1, True)
    pages.share([0])
    assert pages.num_idle == 0
    pages.unkeep(0)
    pages.drop([0])
    assert (pages.num_idle, pages.num_free) == (0, 2)


@given(data=st.data(), num_pages=st.integers(0, 40))
def test_no_page_leaks_and_none_is_used_twice(
    data: st.DataObject, num_pages: int
) -> None:
    pages = Pages(num_pages)
    held: dict[int, list[int]] = {}
    kept: set[int] = set()
    for owner in range(data.draw(st.integers(0, 30))):
        used = {page for run in held.values() for page in run} | kept
        kind = data.draw(st.sampled_from(["take", "grow", "drop", "share", "keep"]))
        some = data.draw(st.sampled_from(sorted(held))) if held else None
        count = data.draw(st.integers(0, 5))
        if kind == "take" and count <= pages.num_free:
            fresh = pages.take(count, owner, room=data.draw(st.integers(0, 4)))
            assert not used & set(fresh)
            assert len(set(fresh)) == count
            held[owner] = fresh
        elif kind == "grow" and some is not None and count <= pages.num_free:
            after = held[some][-1] if held[some] else -1
            fresh = pages.take(count, some, after=after)
            assert not used & set(fresh)
            held[some] += fresh
        elif kind == "drop" and some is not None:
            pages.unclaim(some)
            pages.drop(held.pop(some))
        elif kind == "share" and some is not None:
            pages.share(held[some])
            held[owner] = list(held[some])
        elif kind == "keep" and some is not None:
            for page in set(held[some]) - kept:
                pages.keep(page)
                kept.add(page)
        used = {page for run in held.values() for page in run} | kept
        alone = kept - {page for run in held.values() for page in run}
        assert (pages.num_used, pages.num_idle) == (len(used), len(alone))
    for owner, run in held.items():
        pages.unclaim(owner)
        pages.drop(run)
    for page in kept:
        pages.unkeep(page)
    assert pages.num_free == num_pages
    assert pages.take(num_pages, "all") == list(range(num_pages))
