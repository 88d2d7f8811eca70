from __future__ import annotations

import itertools
from collections.abc import Sequence as Listing
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from neurond.device.prefix import PrefixStore
from neurond.device.prefixtree import Match, Node


class Shelf:
    """A store of pages of 4 tokens, each page given a number of its own."""

    def __init__(self, *, by_state: bool = False, page_tokens: int = 4) -> None:
        self.size = page_tokens
        self.store = PrefixStore(page_tokens, itertools.count(1), by_state=by_state)
        self.numbers = itertools.count(100)
        self.kept: set[int] = set()

    def put(
        self, ids: Listing[int], *, salt: str = "", states: dict[int, Any] | None = None
    ) -> Node:
        """Publish all of `ids`, as a sequence does at its end."""
        node = self.store.root(salt)
        self.store.pin(node)
        for at in range(0, len(ids), self.size):
            part = tuple(ids[at : at + self.size])
            node = self._extend(node, part, at, states or {})
        self.store.unpin(node)
        return node

    def found(self, ids: Listing[int], *, salt: str = "") -> tuple[int, int, Any]:
        """Pages used whole, tokens of the next one, state."""
        match = self.match(ids, salt=salt)
        return len(match.nodes), match.num_tail, match.state

    def match(self, ids: Listing[int], *, salt: str = "") -> Match:
        return self.store.match(salt, ids)

    def evict(self, busy: frozenset[int] = frozenset()) -> int | None:
        page = self.store.evict(lambda page: page not in busy)
        self.kept.discard(page or -1)
        return page

    def _extend(self, parent: Node, part: Any, at: int, states: dict[int, Any]) -> Node:
        page = next(self.numbers)
        node, kept, dropped = self.store.extend(parent, part, page)
        if kept:
            self.kept.add(page)
        self.kept -= set(dropped)
        for position, state in states.items():
            if at < position <= at + len(part):
                self.store.save(node, position - at, state)
        self.store.pin(node)
        self.store.unpin(parent)
        return node


def test_s81_reuse_goes_to_the_last_common_token() -> None:
    shelf = Shelf()
    shelf.put((1, 2, 3, 4, 5, 6, 7, 8, 9))
    assert shelf.found((1, 2, 3, 4, 5, 6, 7, 8, 9, 10)) == (2, 1, None)
    assert shelf.found((1, 2, 3, 4, 5, 6, 0, 8)) == (1, 2, None)
    assert shelf.found((1, 2, 0, 4, 5)) == (0, 2, None)
    assert shelf.found((2, 2, 3, 4, 5)) == (0, 0, None)


def test_one_token_is_always_left_to_compute() -> None:
    shelf = Shelf()
    shelf.put((1, 2, 3, 4, 5, 6, 7, 8))
    assert shelf.found((1, 2, 3, 4, 5, 6, 7, 8)) == (1, 3, None)
    assert shelf.found((1, 2, 3, 4)) == (0, 3, None)
    assert shelf.found((1,)) == (0, 0, None)


def test_salts_share_nothing() -> None:
    shelf = Shelf()
    shelf.put((1, 2, 3, 4), salt="a")
    assert shelf.found((1, 2, 3, 4, 5), salt="b") == (0, 0, None)
    assert shelf.found((1, 2, 3, 4, 5), salt="a") == (1, 0, None)


def test_the_same_tokens_are_kept_once() -> None:
    shelf = Shelf()
    shelf.put((1, 2, 3, 4, 5, 6))
    shelf.put((1, 2, 3, 4, 5, 6))
    shelf.put((1, 2, 3, 4, 5))
    assert len(shelf.kept) == shelf.store.num_nodes == 2
    shelf.put((1, 2, 3, 4, 5, 6, 7, 8, 9))
    assert len(shelf.kept) == shelf.store.num_nodes == 3
    assert shelf.found((1, 2, 3, 4, 5, 6, 7, 8, 9, 9)) == (2, 1, None)


def test_a_partly_filled_page_grows_where_it_is() -> None:
    shelf = Shelf()
    root = shelf.store.root("")
    shelf.store.pin(root)
    assert shelf.store.extend(root, (1, 2), 7)[1:] == (True, [])
    node, kept, dropped = shelf.store.extend(root, (1, 2, 3, 4), 7)
    assert (node.page, kept, dropped) == (7, False, [])
    assert shelf.store.num_nodes == 1
    assert shelf.found((1, 2, 3, 4, 5)) == (1, 0, None)


def test_the_leaf_not_used_for_longest_goes_first() -> None:
    shelf = Shelf()
    shelf.put((1, 2, 3, 4, 5))
    shelf.put((1, 2, 3, 4, 6))
    shelf.store.touch(shelf.match((1, 2, 3, 4, 5, 5)))
    pages = [shelf.evict() for _ in range(4)]
    assert pages == [103, 101, 100, None]
    assert shelf.store.num_nodes == 0


def test_what_is_in_use_is_not_evicted() -> None:
    shelf = Shelf()
    node = shelf.put((1, 2, 3, 4))
    shelf.put((5, 6, 7, 8))
    shelf.store.pin(node)
    assert shelf.evict(busy=frozenset({101})) is None
    assert shelf.evict() == 101
    assert shelf.evict() is None
    shelf.store.unpin(node)
    assert shelf.evict() == 100


def test_a_branch_is_withdrawn_up_to_where_others_use_it() -> None:
    shelf = Shelf()
    shelf.put((1, 2, 3, 4, 5, 5, 5, 5))
    node = shelf.put((1, 2, 3, 4, 6, 6, 6, 6, 7))
    above = node.parent
    assert above is not None
    shelf.store.pin(above)
    assert shelf.store.withdraw(above, [node.page]) == [node.page, above.page]
    assert shelf.found((1, 2, 3, 4, 6, 6, 6, 6)) == (1, 0, None)
    assert shelf.found((1, 2, 3, 4, 5, 5, 5, 5)) == (1, 3, None)


# ---- recurrent states ---------------------------------------------------------------


def test_s82_reuse_ends_where_a_state_was_saved() -> None:
    shelf = Shelf(by_state=True)
    shelf.put(tuple(range(11)), states={3: "three", 8: "eight", 10: "ten"})
    assert shelf.found((*range(11), 50)) == (2, 2, "ten")
    assert shelf.found((*range(9), 50)) == (2, 0, "eight")
    assert shelf.found((*range(8), 50)) == (2, 0, "eight")
    assert shelf.found(range(8)) == (0, 3, "three")
    assert shelf.found((0, 1, 50)) == (0, 0, None)


def test_states_move_with_the_page_that_replaces_theirs() -> None:
    shelf = Shelf(by_state=True)
    shelf.put((1, 2), states={2: "two"})
    shelf.put((1, 2, 3), states={3: "three"})
    shelf.put((1, 2, 3, 4), states={2: "again"})
    assert shelf.store.num_nodes == 1
    assert shelf.store.num_states == 2
    assert shelf.found((1, 2, 9)) == (0, 2, "two")
    shelf.evict()
    assert shelf.store.num_states == 0


def test_states_are_dropped_one_by_one_and_pages_stay() -> None:
    shelf = Shelf(by_state=True)
    shelf.put((1, 2, 3, 4, 5), states={4: "old", 5: "older"})
    shelf.put((6, 7), states={2: "new"})
    found = []
    while shelf.store.drop_state():
        found.append([shelf.found(ids)[2] for ids in ((1, 2, 3, 4, 5, 0), (6, 7, 0))])
    assert found[0][1] == "new"
    assert found[-1] == [None, None]
    assert (len(found), shelf.store.num_states, shelf.store.num_nodes) == (3, 0, 3)


# ---- all of it ----------------------------------------------------------------------

TEXT = st.lists(st.integers(0, 2), min_size=1, max_size=14)


@given(texts=st.lists(TEXT, max_size=8), prompt=TEXT, size=st.integers(1, 5))
def test_the_longest_common_beginning_is_found(
    texts: list[list[int]], prompt: list[int], size: int
) -> None:
    shelf = Shelf(page_tokens=size)
    for text in texts:
        shelf.put(text)
    match = shelf.match(prompt)
    assert match.num_tokens == max(
        (_common(text, prompt[:-1]) for text in texts), default=0
    )
    path = [*match.nodes, *((match.tail,) if match.num_tail else ())]
    tokens = [token for node in path for token in node.tokens][: match.num_tokens]
    assert tokens == prompt[: match.num_tokens]
    assert len(shelf.kept) == shelf.store.num_nodes
    while shelf.evict() is not None:
        pass
    assert (shelf.kept, shelf.store.num_nodes, shelf.store.oldest) == (set(), 0, -1)


def _common(left: Listing[int], right: Listing[int]) -> int:
    pairs = zip(left, right, strict=False)
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
    return sum(1 for _ in same)
