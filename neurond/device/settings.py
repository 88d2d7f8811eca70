"""What the supervisor's configuration tells one device process.

Device process, torch-free. Read once in `worker.main` from the plain dict that crosses
the fork; frozen afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """Field names are the configuration's, whatever section they stand in there."""

    threads: int = 0
    count: int = 1
    memory_bytes: int = 0
    packed_folder: str = ""
    numerics: str = "fast"
    max_running: int = 16
    max_queue: int = 64
    prefill_chunk: int = 512
    kv_bytes: int = 0
    page_tokens: int = 0
    prefix_cache: bool = True
    first_token_target_s: float = 120.0
    queue_deadline_s: float = 60.0
    boot_deadline_s: float = 120.0
    load_deadline_s: float = 900.0
    prefill_deadline_s: float = 120.0
    decode_deadline_s: float = 30.0
    probe_deadline_s: float = 5.0
    injection: bool = False
    probe_every_s: float = 30.0

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> DeviceSettings:
        """From a flat dict or from the node's whole config; other keys don't matter."""
        flat = dict(settings)
        for section in settings.values():
            if isinstance(section, Mapping):
                flat.update(section)
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in flat.items() if key in known})
