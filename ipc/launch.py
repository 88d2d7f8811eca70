"""One way to start a module of ours as a child with settings.

Used by both supervisors. The child gets its settings as a sealed memfd and the
descriptors that it needs under the numbers that they have here, and nothing else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ipc.child import Child, pass_settings, spawn

METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Where workers keep the figures that a metrics process reads."""


def launch(
    name: str,
    module: str,
    settings: Mapping[str, Any],
    *,
    fds: Iterable[int] = (),
    environ: Mapping[str, str] | None = None,
) -> Child:
    """`python -m module --settings-fd N`, `environ` added to ours. Raises OSError."""
    settings_fd = pass_settings(settings)
    argv = [sys.executable, "-m", module, "--settings-fd", str(settings_fd)]
    try:
        return spawn(
            name,
            argv,
            fds=(settings_fd, *fds),
            env={**os.environ, **(environ or {})},
        )
    finally:
        os.close(settings_fd)


def forget_gauges(folder: Path) -> None:
    """Before a front end starts: what workers said of their present ended with them.

    An arbiter forgets the workers that it survives; its own death takes all of them.
    """
    for left in folder.glob("gauge_live*"):
        left.unlink(missing_ok=True)
