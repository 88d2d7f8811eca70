"""Who is to blame when a device dies while a model waits to be loaded on it."""

from __future__ import annotations

from pathlib import Path

from neurond.states import ModelStatus
from tests.neurond.lifekit import Node
from tests.neurond.slotkit import loaded_message, running


@running
async def test_a_device_that_dies_before_it_was_told_to_load_blames_no_model(
    tmp_path: Path,
) -> None:
    node = Node(tmp_path)
    await node.sent()
    node.dies()
    for _ in range(3):
        node.slot.generation += 1
        node.dies(reason="boot took longer than its deadline")
    assert node.status() is ModelStatus.LOADING
    node.slot.generation += 1
    node.comes_back()
    node.says(loaded_message())
    assert node.status() is ModelStatus.LOADED
