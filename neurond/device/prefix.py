"""The prefix store: computed pages by the tokens that led to them.

Device process, torch-free, pure. A tree per cache salt; a node is a page and the tokens
in it. Full pages may have children, a partly filled one is a leaf. What a prompt shares
with the tree is reused to the last common token (S81): full pages as they are, of the
page where they part a copy of the common tokens.

    root ─ [You are a helpful …] ─ [assistant … user: hi] ─ [bye …
                                 └ [assistant … user: he|llo …

A model with recurrent state can only go on where a state was saved (S82): nodes hold
states by the number of their tokens that lie behind them.

Invariants: below one parent no node's tokens begin another's; a pinned node, one with
children and one whose page a sequence uses are never evicted.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Listing
from dataclasses import dataclass
from typing import Any

Tokens = tuple[int, ...]


class Node:
    """`used` is the store's time of the last use."""

    __slots__ = (
        "children",
        "page",
        "parent",
        "partial",
        "pins",
        "states",
        "tokens",
        "used",
    )

    def __init__(self, parent: Node | None, tokens: Tokens, page: int) -> None:
        self.parent = parent
        self.tokens = tokens
        self.page = page
        self.children: dict[Tokens, Node] = {}
        self.partial: dict[Tokens, Node] = {}
        self.states: dict[int, Any] = {}
        self.pins = 0
        self.used = 0

    @property
    def is_leaf(self) -> bool:
        return not (self.children or self.partial)


@dataclass(frozen=True, slots=True)
class Match:
    """Reuse `nodes` whole and the first `num_tail` tokens of `tail`."""

    nodes: tuple[Node, ...] = ()
    tail: Node | None = None
    num_tail: int = 0
    num_tokens: int = 0
    state: Any = None


class PrefixStore:
    """Owns the nodes; the references to their pages are counted by the caller."""

    def __init__(
        self, page_tokens: int, ticks: Iterator[int], *, by_state: bool = False
    ) -> None:
        """`ticks` is the clock of last uses, one for all stores of a device."""
        self._page_tokens = page_tokens
        self._ticks = ticks
        self._by_state = by_state
        self._roots: dict[str, Node] = {}
        self._now = 0
        self._heap: list[tuple[int, int, Node]] = []
        self.num_nodes = 0
        self.num_states = 0

    # -- reading

    def match(self, salt: str, ids: Listing[int]) -> Match:
        """The longest reuse for a prompt; its last token is always left to compute."""
        root = self._roots.get(salt)
        if root is None:
            return Match()
        path, tail, num_tail = self._walk(root, ids)
        if self._by_state:
            return self._last_state(path, tail, num_tail)
        num_tokens = len(path) * self._page_tokens + num_tail
        return Match(tuple(path), tail if num_tail else None, num_tail, num_tokens)

    def touch(self, match: Match) -> None:
        """It was used: evict it later."""
        self._now = next(self._ticks)
        for node in (*match.nodes, *((match.tail,) if match.tail else ())):
            self._renew(node)

    @property
    def oldest(self) -> int:
        """Time of last use of the first candidate for eviction; -1 = nothing there."""
        return self._heap[0][0] if self._heap else -1

    # -- writing

    def root(self, salt: str) -> Node:
        return self._roots.setdefault(salt, Node(None, (), -1))

    def extend(
        self, parent: Node, tokens: Tokens, page: int
    ) -> tuple[Node, bool, list[int]]:
        """Put a computed page below `parent`, which the caller has pinned.

        Returns the node that has these tokens, whether the store now refers to `page`
        and did not before, and the pages it refers to no longer.
        """
        self._now = next(self._ticks)
        there = parent.children.get(tokens) or _longer(parent, tokens)
        if there is not None:
            self._renew(there)
            return there, False, []
        grown, states, dropped = None, {}, []
        for shorter in _shorter(parent, tokens):
            states.update(shorter.states)
            if shorter.page == page:
                grown = shorter
                self.num_states -= len(shorter.states)
                del parent.partial[shorter.tokens]
            else:
                dropped.append(self.remove(shorter))
        node = grown or Node(parent, tokens, page)
        self.num_nodes += grown is None
        self.num_states += len(states)
        node.tokens, node.states = tokens, states
        full = len(tokens) == self._page_tokens
        (parent.children if full else parent.partial)[tokens] = node
        self._renew(node)
        return node, grown is None, dropped

    def save(self, node: Node, num_tokens: int, state: Any) -> bool:
        """A recurrent state behind `num_tokens` of the node's; false: there is one."""
        if num_tokens in node.states:
            return False
        node.states[num_tokens] = state
        self.num_states += 1
        return True

    def pin(self, node: Node) -> None:
        node.pins += 1

    def unpin(self, node: Node) -> None:
        node.pins -= 1
        if node.parent is not None:
            self._push(node)
        elif node.is_leaf and not node.pins:
            self._forget(node)

    def remove(self, leaf: Node) -> int:
        """Take a leaf out. Returns its page, to which the store refers no longer."""
        parent = leaf.parent
        assert parent is not None
        mine = parent.children if leaf.tokens in parent.children else parent.partial
        del mine[leaf.tokens]
        leaf.parent = None
        self.num_nodes -= 1
        self.num_states -= len(leaf.states)
        if parent.is_leaf and parent.parent is not None:
            self._push(parent)
        elif parent.is_leaf and not parent.pins:
            self._forget(parent)
        return leaf.page

    def evict(self, is_idle: Callable[[int], bool]) -> int | None:
        """Remove the leaf not used for longest whose page is idle. Returns its page."""
        busy = []
        page = None
        while self._heap and page is None:
            entry = heapq.heappop(self._heap)
            used, _, node = entry
            if node.parent is None or not node.is_leaf or node.used != used:
                continue
            if node.pins or not is_idle(node.page):
                busy.append(entry)
            else:
                page = self.remove(node)
        for entry in busy:
            heapq.heappush(self._heap, entry)
        return page

    # -- inside

    def _walk(
        self, root: Node, ids: Listing[int]
    ) -> tuple[list[Node], Node | None, int]:
        """Full nodes along the prompt, then the one that goes on longest with it."""
        node, path = root, []
        at, limit, size = 0, len(ids) - 1, self._page_tokens
        while at + size <= limit:
            child = node.children.get(tuple(ids[at : at + size]))
            if child is None:
                break
            path.append(child)
            node, at = child, at + size
        tail, num_tail = _closest(node, tuple(ids[at : min(limit, at + size)]))
        return path, tail, num_tail

    def _last_state(self, path: list[Node], tail: Node | None, num_tail: int) -> Match:
        size = self._page_tokens
        steps = [(node, size) for node in path]
        if tail is not None:
            steps.append((tail, num_tail))
        for depth in range(len(steps) - 1, -1, -1):
            node, common = steps[depth]
            saved = [count for count in node.states if count <= common]
            if saved:
                count = max(saved)
                state = node.states[count]
                tokens = depth * size + count
                if count == size:
                    return Match(tuple(path[: depth + 1]), None, 0, tokens, state)
                return Match(tuple(path[:depth]), node, count, tokens, state)
        return Match()

    def _renew(self, node: Node) -> None:
        node.used = self._now
        self._push(node)

    def _push(self, node: Node) -> None:
        """Make it a candidate; entries that no longer hold are skipped when met."""
        if node.is_leaf:
            heapq.heappush(self._heap, (node.used, id(node), node))
            if len(self._heap) > 64 + 4 * self.num_nodes:
                live = [entry for entry in set(self._heap) if _holds(entry)]
                heapq.heapify(live)
                self._heap = live

    def _forget(self, root: Node) -> None:
        self._roots = {salt: node for salt, node in self._roots.items() if node != root}


def _holds(entry: tuple[int, int, Node]) -> bool:
    used, _, node = entry
    return node.parent is not None and node.used == used and node.is_leaf


def _longer(parent: Node, tokens: Tokens) -> Node | None:
    """A child whose tokens begin with these."""
    size = len(tokens)
    for nodes in (parent.partial, parent.children):
        for node in nodes.values():
            if node.tokens[:size] == tokens:
                return node
    return None


def _shorter(parent: Node, tokens: Tokens) -> list[Node]:
    """Children whose tokens are a beginning of these."""
    nodes = parent.partial.values()
    return [node for node in nodes if tokens[: len(node.tokens)] == node.tokens]


def _closest(parent: Node, tokens: Tokens) -> tuple[Node | None, int]:
    """The child with the longest common beginning, and its length."""
    best, length = None, 0
    for nodes in (parent.children, parent.partial):
        for node in nodes.values():
            if node.tokens[: length + 1] == tokens[: length + 1]:
                common = _common(node.tokens, tokens)
                if common > length:
                    best, length = node, common
    return best, length


def _common(left: Tokens, right: Tokens) -> int:
    """Length of the longest common beginning."""
    pairs = zip(left, right, strict=False)
    return next(
        (at for at, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right))
    )
