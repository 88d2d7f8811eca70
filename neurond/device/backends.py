"""Which backend computes on a device, by the device's kind.

Device process. Only the backend of a real device imports torch, and only here.
"""

from __future__ import annotations

import os

from neurond.device.backend import Backend
from neurond.device.injection import InjectingBackend
from neurond.device.preload import ENVIRONMENT
from neurond.device.settings import DeviceSettings


def make_backend(kind: str, settings: DeviceSettings) -> Backend:
    """The kind's own; faults can be ordered from it where the configuration says so."""
    if kind == "fake":
        from neurond.device.fake import FakeBackend

        fake = FakeBackend(settings.memory_bytes)
        return InjectingBackend(fake) if settings.injection else fake
    os.environ.update(ENVIRONMENT)  # the zygote did; it must stand before the import
    from neurond.device.runner import TorchBackend

    backend = TorchBackend(kind, settings)
    if not settings.injection:
        return backend
    from neurond.device.recipes import recipes

    return InjectingBackend(backend, recipes() if kind == "cuda" else {})
