"""What each model answered to its fixed prompt when it was first loaded (S19).

Supervisor. A device computes the same prompt at the end of every load; one that answers
otherwise after a respawn computes wrongly, and is not let near requests.

Invariant: only what was loaded from the same source, in the same form, on the same kind
of device is compared; an unload forgets, since files may be replaced after it.
"""

from __future__ import annotations

from ipc.messages import Loaded
from neurond.discovery import DeviceSpec
from neurond.modelrecord import ModelRecord

_MOST = 256

_Key = tuple[str, ...]


class GoldenBook:
    def __init__(self) -> None:
        self._digests: dict[_Key, str] = {}

    def agrees(self, record: ModelRecord, device: DeviceSpec, told: Loaded) -> bool:
        """Keeps the first; without a digest there is nothing to disagree with.

        After another answer the next life takes nothing for known.
        """
        digest = told.info.get("golden")
        if not digest:
            return True
        key = _key(record, device, told)
        known = self._digests.setdefault(key, str(digest))
        while len(self._digests) > _MOST:
            del self._digests[next(iter(self._digests))]
        if known != str(digest):
            record.known = {}
        return known == str(digest)

    def forget(self, model: str) -> None:
        """It was unloaded."""
        self._digests = {k: d for k, d in self._digests.items() if k[0] != model}


def _key(record: ModelRecord, device: DeviceSpec, told: Loaded) -> _Key:
    form = [told.info.get(name, "") for name in ("dtype", "quant", "numerics")]
    kind = (device.kind, device.name)
    return (told.model, record.spec.source, record.digest, *map(str, form), *kind)
