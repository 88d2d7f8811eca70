"""Ctrl-C before anything was started."""

from __future__ import annotations

import pytest

from cortexd.ctl import cortex


def test_ctrl_c_at_the_very_start_is_an_exit_code_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(_words: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("cortexd.ctl.run.__main__.main", interrupted)
    assert cortex.main(["run"]) == 130
