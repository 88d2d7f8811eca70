from __future__ import annotations

import pytest
import torch

from ipc.errors import DeviceFault
from neurond.device import probe as module
from neurond.device.probe import probe


def test_a_device_that_computes_passes() -> None:
    probe(torch.device("cpu"))


def test_a_wrong_result_is_a_device_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EXPECTED", 1)
    with pytest.raises(DeviceFault, match="instead of 1"):
        probe(torch.device("cpu"))


@pytest.mark.gpu
def test_a_gpu_that_computes_passes() -> None:
    probe(torch.device("cuda:0"))
