"""Is a node there? Is the gateway well? Pure: a table and a few rules.

One missed poll says nothing: hosts pause, packets get lost. Three in a row say that the
node is gone, and one answer that it is back (S25).

    state     answer   miss 1, 2   miss 3
    unknown   up       unknown     down
    up        up       up          down
    down      up       down        down
"""

from __future__ import annotations

from dataclasses import dataclass

from cortexd.snapshot import Snapshot, Standing

MISSES_UNTIL_DOWN = 3


@dataclass(frozen=True, slots=True)
class NodeStanding:
    """`since_s` is when the state began, `misses` are those in a row."""

    state: Standing
    since_s: float
    misses: int = 0


_ON_ANSWER: dict[Standing, Standing] = {"unknown": "up", "up": "up", "down": "up"}
_ON_LAST_MISS: dict[Standing, Standing] = {
    "unknown": "down",
    "up": "down",
    "down": "down",
}


def answered(old: NodeStanding, now_s: float) -> NodeStanding:
    return _moved(old, _ON_ANSWER[old.state], 0, now_s)


def missed(old: NodeStanding, now_s: float) -> NodeStanding:
    misses = old.misses + 1
    last = misses >= MISSES_UNTIL_DOWN
    return _moved(old, _ON_LAST_MISS[old.state] if last else old.state, misses, now_s)


def gateway_state(snapshot: Snapshot) -> str:
    """starting, ready or impaired."""
    standings = [node.standing for node in snapshot.nodes.values()]
    if standings and all(standing == "up" for standing in standings):
        return "ready"
    return "impaired" if snapshot.complete else "starting"


def _moved(
    old: NodeStanding, state: Standing, misses: int, now_s: float
) -> NodeStanding:
    since_s = old.since_s if state == old.state else now_s
    return NodeStanding(state, since_s, misses)
