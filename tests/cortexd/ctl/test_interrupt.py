"""Ctrl-C before anything was started."""

from __future__ import annotations

from collections.abc import Iterator

from cortexd.ctl import cortex


class Interrupted(list[str]):
    """A command line during whose reading Ctrl-C comes."""

    def __iter__(self) -> Iterator[str]:
        raise KeyboardInterrupt


def test_ctrl_c_at_the_very_start_is_an_exit_code_and_no_traceback() -> None:
    assert cortex.main(Interrupted(["run"])) == 130
