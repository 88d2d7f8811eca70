"""What was seen of a GPU, and what each sighting asks for in the light of the others.

Supervisor; pure, one `Sightings` per device. NVML and the kernel's log tell the same
thing twice: what comes within the window counts once.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from neurond import xids
from neurond.xids import Cure, Measure, Sighting, Xid, XidClass

WINDOW_S = 5.0
"""How far apart the signs of one fault may come."""
AGAIN_S = 3600.0
"""Two of a kind within it aren't chance."""
_MOST_SHOWN = 8
_RESPAWN = (Measure.RESPAWN, Cure.NONE)


@dataclass(frozen=True, slots=True)
class Shown:
    """One line of a device's record."""

    xid: int
    what: str
    kind: str
    at_s: float


@dataclass(slots=True)
class Sightings:
    shown: deque[Shown] = field(default_factory=lambda: deque(maxlen=_MOST_SHOWN))
    _seen: dict[int, deque[float]] = field(default_factory=dict)

    def note(self, xid: int, at_s: float) -> bool:
        """Whether it is news, and not said a second time."""
        is_news = not self._count(xid, at_s, WINDOW_S)
        self._seen.setdefault(xid, deque(maxlen=_MOST_SHOWN)).append(at_s)
        if is_news:
            row = xids.row(xid)
            self.shown.append(Shown(xid, row.what, str(row.kind), at_s))
        return is_news

    def forget(self) -> None:
        """What is shown stays."""
        self._seen.clear()

    def weigh(
        self, sighting: Sighting, at_s: float, *, is_grouped: bool
    ) -> tuple[Measure, Cure]:
        """What it asks for, were the device untouched; after `note`."""
        row = xids.row(sighting.xid)
        if row.by_recovery:
            return self._by_recovery(sighting, row, at_s)
        action = sighting.recovery
        if row.kind in (XidClass.RECOVERY, XidClass.UNKNOWN):
            return xids.recovery(action or 0)
        if sighting.xid in xids.WITH_DOUBLE_BIT and self._count(
            xids.DOUBLE_BIT, at_s, WINDOW_S
        ):
            return Measure.OUT, Cure.RESET
        if row.kind is XidClass.LINK:
            return self._by_link(sighting.xid, at_s, is_grouped=is_grouped)
        return row.measure, row.cure

    def _by_recovery(
        self, sighting: Sighting, row: Xid, at_s: float
    ) -> tuple[Measure, Cure]:
        """The process must go in any case."""
        if sighting.recovery is None:
            return row.measure, row.cure
        if sighting.recovery == 0:
            return (row.measure, row.cure) if self._insists(row, at_s) else _RESPAWN
        measure, cure = xids.recovery(sighting.recovery)
        if measure is Measure.DRAIN_OUT:
            return Measure.OUT, cure
        return max(_RESPAWN, (measure, cure))

    def _insists(self, row: Xid, at_s: float) -> bool:
        """No action is recommended, but it wasn't alone or not for the first time."""
        if row.kind is XidClass.ECC:
            return any(self._count(x, at_s, WINDOW_S) for x in xids.WITH_DOUBLE_BIT)
        hard = [x for x in self._seen if xids.row(x).kind is XidClass.HW_HARD]
        return any(self._is_again(x, at_s) for x in hard)

    def _by_link(
        self, xid: int, at_s: float, *, is_grouped: bool
    ) -> tuple[Measure, Cure]:
        """Models of one GPU don't need the link."""
        row = xids.row(xid)
        if is_grouped:
            is_over = row.cure is not Cure.NONE or self._is_again(xid, at_s)
            return (Measure.OUT, Cure.RESET) if is_over else (row.measure, row.cure)
        is_again = self._is_again(xid, at_s)
        return Measure.WATCH if is_again else row.measure, row.cure

    def _is_again(self, xid: int, at_s: float) -> bool:
        """Seen within the hour, and not as part of what is seen now."""
        seen = self._seen.get(xid, ())
        return any(WINDOW_S < at_s - s <= AGAIN_S for s in seen)

    def _count(self, xid: int, at_s: float, within_s: float) -> int:
        return sum(at_s - s <= within_s for s in self._seen.get(xid, ()))


def row_name(xid: int) -> str:
    return f"Xid {xid}: {xids.row(xid).what}"
