"""The nodes of a prefix store and how token runs are compared in it.

Device process, torch-free, pure. A node is a page and the tokens in it; one with fewer
tokens than a page takes stands in `partial` and has no children.
"""

from __future__ import annotations

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


def longer(parent: Node, tokens: Tokens) -> Node | None:
    """A child whose tokens begin with these."""
    size = len(tokens)
    for nodes in (parent.partial, parent.children):
        for node in nodes.values():
            if node.tokens[:size] == tokens:
                return node
    return None


def shorter(parent: Node, tokens: Tokens) -> list[Node]:
    """Children whose tokens are a beginning of these."""
    nodes = parent.partial.values()
    return [node for node in nodes if tokens[: len(node.tokens)] == node.tokens]


def closest(parent: Node, tokens: Tokens) -> tuple[Node | None, int]:
    """The child with the longest common beginning, and its length."""
    best, length = None, 0
    for nodes in (parent.children, parent.partial):
        for node in nodes.values():
            if node.tokens[: length + 1] == tokens[: length + 1]:
                same = common(node.tokens, tokens)
                if same > length:
                    best, length = node, same
    return best, length


def common(left: Tokens, right: Tokens) -> int:
    """Length of the longest common beginning."""
    pairs = zip(left, right, strict=False)
    return next(
        (at for at, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right))
    )
