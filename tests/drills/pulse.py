"""Asks a daemon for /health all the time, and keeps how long each answer took.

A process of its own, so that what is measured is the daemon's time and not a drill's.
It asks until its standard input closes, and then prints one JSON list of seconds, -1
for no answer.
"""

from __future__ import annotations

import http.client
import json
import select
import subprocess
import sys
import time
from dataclasses import dataclass

from tests.harness import ROOT

_EVERY_S = 0.05
_TIMEOUT_S = 5.0
_NO_ANSWER = -1.0
_MAIN = "import sys; from tests.drills.pulse import main; main(sys.argv[1:])"


@dataclass(frozen=True, slots=True)
class Beats:
    """Seconds, the shortest first; `lost` had no answer."""

    took_s: tuple[float, ...]
    lost: int

    def quantile_s(self, share: float) -> float:
        return self.took_s[int(share * (len(self.took_s) - 1))] if self.took_s else 0.0

    def __str__(self) -> str:
        shares = ((0.5, "median"), (0.99, "99 %"), (1.0, "all"))
        told = ", ".join(f"{n} {self.quantile_s(q) * 1e3:.1f} ms" for q, n in shares)
        return f"{len(self.took_s)} health answers: {told}; {self.lost} without"


class Pulse:
    """With a process, from `with` to its end."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses
        self._process: subprocess.Popen[str]

    def __enter__(self) -> Pulse:
        argv = [sys.executable, "-c", _MAIN, *self._addresses]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            argv, cwd=ROOT, stdin=pipe, stdout=pipe, text=True
        )
        return self

    def __exit__(self, *_exception: object) -> None:
        self._process.kill()
        self._process.wait()

    def beats(self) -> Beats:
        """Ends it."""
        told, _ = self._process.communicate("", timeout=3 * _TIMEOUT_S)
        took_s = json.loads(told)
        answered = sorted(one for one in took_s if one != _NO_ANSWER)
        return Beats(tuple(answered), len(took_s) - len(answered))


def measure(address: str) -> float:
    begun_s = time.perf_counter()
    connection = http.client.HTTPConnection(address, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return _NO_ANSWER
    finally:
        connection.close()
    return time.perf_counter() - begun_s


def main(addresses: list[str]) -> None:
    took_s: list[float] = []
    while not select.select([sys.stdin], [], [], _EVERY_S)[0]:
        took_s += [measure(address) for address in addresses]
    print(json.dumps(took_s))
