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
from typing import Any

from neurond.device.prefixtree import Match, Node, Tokens, closest, longer, shorter


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
        there = parent.children.get(tokens) or longer(parent, tokens)
        if there is not None:
            self._renew(there)
            return there, False, []
        grown, states, dropped = None, {}, []
        for old in shorter(parent, tokens):
            states.update(old.states)
            if old.page == page:
                grown = old
                self.num_states -= len(old.states)
                del parent.partial[old.tokens]
            else:
                dropped.append(self.remove(old))
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
        else:
            self._forget_if_empty(node)

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
        else:
            self._forget_if_empty(parent)
        return leaf.page

    def withdraw(self, node: Node, tails: Listing[int]) -> list[int]:
        """Remove a branch from its end up to where others use it.

        `node` is its last full page and pinned once by the caller, `tails` the pages
        that may be partly filled leaves below it. Returns the removed nodes' pages.
        """
        leaves = [leaf for leaf in node.partial.values() if leaf.page in tails]
        removed = [self.remove(leaf) for leaf in leaves]
        step: Node | None = node
        while step is not None and step.parent is not None:
            if not step.is_leaf or step.pins > (step is node):
                break
            above = step.parent
            above.pins += 1
            removed.append(self.remove(step))
            above.pins -= 1
            step = above
        if step is not None and step.parent is None:
            self._forget_if_empty(step)
        return removed

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

    def drop_state(self) -> bool:
        """Forget one saved state, of the node not used for longest; the pages stay."""
        if not self.num_states:
            return False
        oldest = min(self._with_states(), key=lambda node: node.used)
        del oldest.states[min(oldest.states)]
        self.num_states -= 1
        return True

    # -- inside

    def _with_states(self) -> Iterator[Node]:
        nodes = list(self._roots.values())
        while nodes:
            node = nodes.pop()
            nodes += [*node.children.values(), *node.partial.values()]
            if node.states:
                yield node

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
        tail, num_tail = closest(node, tuple(ids[at : min(limit, at + size)]))
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

    def _forget_if_empty(self, root: Node) -> None:
        if root.is_leaf and not root.pins and root.parent is None:
            self._roots = {s: node for s, node in self._roots.items() if node != root}


def _holds(entry: tuple[int, int, Node]) -> bool:
    used, _, node = entry
    return node.parent is not None and node.used == used and node.is_leaf
