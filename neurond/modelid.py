"""Names of models, and the two that come with the package.

Supervisor. An id names files and metric labels, so it is letters, digits and a few
signs, never a path that climbs (T16).
"""

from __future__ import annotations

import re

EMBEDDED_ID = "smollm2-135m-instruct"
EMBEDDED_SOURCE = "embedded:smollm2"
EMBEDDER_ID = "all-minilm-l6-v2"
EMBEDDER_SOURCE = "embedded:minilm"

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+/-]{0,199}")


def is_model_id(text: str) -> bool:
    parts = text.split("/")
    return bool(_ID.fullmatch(text)) and not any(p in ("", ".", "..") for p in parts)
