"""Who asks? With authentication off, which is the default, everybody is one principal.

Gateway worker. Clients that must send some key send a placeholder; it is neither looked
at nor passed on to a node (S43).
"""

from __future__ import annotations

from collections.abc import Mapping

ANONYMOUS = "anonymous"


class Open:
    """Authentication is off."""

    def principal(self, headers: Mapping[str, str]) -> str:
        """Never refuses, whatever key is among the headers."""
        del headers
        return ANONYMOUS
