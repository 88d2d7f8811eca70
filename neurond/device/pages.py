"""Which pages of a model's pool are free, who shares the others, where the next goes.

Device process, torch-free, pure. A sequence whose pages have consecutive numbers is one
view of the pool and needs no gathering, so a page is looked for behind the sequence's
last one, and a new sequence is placed where it can grow: outside what others have
claimed for their own growth, as low as it fits, so that memory once touched is used
again.

    pool  [AAAA··][BB····][ffff····]        f: free, ·: free, but claimed for growth

Invariants: a page is free or has at least one reference, never both; an idle page is
one that only the prefix store refers to.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterable

Run = tuple[int, int]
"""Pages start, …, end - 1."""


class Pages:
    """Owns the free runs and the reference counts of one pool."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.num_free = num_pages
        self.num_idle = 0
        self._starts = [0] if num_pages else []
        self._ends = {0: num_pages} if num_pages else {}
        self._refs: dict[int, int] = {}
        self._kept: set[int] = set()
        self._claims: dict[Hashable, Run] = {}

    @property
    def num_used(self) -> int:
        return self.num_pages - self.num_free

    def num_refs(self, page: int) -> int:
        return self._refs.get(page, 0)

    def is_idle(self, page: int) -> bool:
        """Only the store refers to it."""
        return page in self._kept and self._refs[page] == 1

    # -- handing out

    def take(
        self, count: int, owner: Hashable, *, after: int = -1, room: int = 0
    ) -> list[int]:
        """`count` pages with one reference each; the caller knows that they are free.

        `after` is the owner's last page; `room` how many more pages it may come to
        want, which others then leave free as long as they can.
        """
        taken: list[int] = []
        while len(taken) < count:
            missing = count - len(taken)
            if after < 0 or not self._is_free(after + 1):
                after = self._spot(missing + room, owner) - 1
            run = self._cut(after + 1, missing)
            taken += run
            after = run[-1]
        if taken:
            self._claims[owner] = (taken[0], after + 1 + room)
        self._refs.update(dict.fromkeys(taken, 1))
        return taken

    def unclaim(self, owner: Hashable) -> None:
        """The owner grows no more."""
        self._claims.pop(owner, None)

    # -- references

    def share(self, pages: Iterable[int]) -> None:
        """One more reference to each."""
        for page in pages:
            self.num_idle -= self.is_idle(page)
            self._refs[page] += 1

    def drop(self, pages: Iterable[int]) -> None:
        """One reference less; without any a page is free."""
        for page in pages:
            self._refs[page] -= 1
            if self._refs[page] == 0:
                self._free(page)
            else:
                self.num_idle += self.is_idle(page)

    def keep(self, page: int) -> None:
        """The store's reference; there is one of a page at most."""
        self.share((page,))
        self._kept.add(page)

    def unkeep(self, page: int) -> None:
        """The store's reference is gone."""
        self.num_idle -= self.is_idle(page)
        self._kept.discard(page)
        self.drop((page,))

    # -- free runs

    def _is_free(self, page: int) -> bool:
        at = bisect_right(self._starts, page) - 1
        return at >= 0 and page < self._ends[self._starts[at]]

    def _cut(self, start: int, most: int) -> list[int]:
        """Take up to `most` pages from the free run that `start` lies in."""
        at = bisect_right(self._starts, start) - 1
        first = self._starts[at]
        end = self._ends[first]
        stop = min(end, start + most)
        del self._starts[at], self._ends[first]
        for left, right in ((stop, end), (first, start)):
            if left < right:
                self._starts.insert(at, left)
                self._ends[left] = right
        self.num_free -= stop - start
        return list(range(start, stop))

    def _free(self, page: int) -> None:
        del self._refs[page]
        self.num_free += 1
        start, end = page, page + 1
        at = bisect_left(self._starts, page)
        if at < len(self._starts) and self._starts[at] == end:
            end = self._ends.pop(self._starts.pop(at))
        if at > 0 and self._ends[self._starts[at - 1]] == page:
            start = self._starts[at - 1]
        else:
            self._starts.insert(at, start)
        self._ends[start] = end

    def _spot(self, size: int, owner: Hashable) -> int:
        """Where a run of `size` should begin: the first place that has the room."""
        unclaimed = self._unclaimed(owner)
        for start, end in unclaimed:
            if end - start >= size:
                return start
        runs = unclaimed or [(start, self._ends[start]) for start in self._starts]
        return max(runs, key=lambda run: run[1] - run[0])[0]

    def _unclaimed(self, owner: Hashable) -> list[Run]:
        """Free runs less what others claim, lowest first."""
        claims = sorted(run for who, run in self._claims.items() if who != owner)
        runs: list[Run] = []
        for start in self._starts:
            left, end = start, self._ends[start]
            for low, high in claims:
                if low >= end or high <= left:
                    continue
                if left < low:
                    runs.append((left, low))
                left = high
            if left < end:
                runs.append((left, end))
        return runs
