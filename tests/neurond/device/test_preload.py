from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import gc, os, sys
from neurond.device.preload import preload
preload()
import torch
models = [m for m in sys.modules if m.startswith("transformers.models.")
          and ".modeling_" in m and not m.startswith("transformers.models.auto")]
assert not models, models
assert len(os.listdir("/proc/self/task")) == 1, os.listdir("/proc/self/task")
assert not torch.cuda.is_initialized()
assert not [fd for fd in os.listdir("/proc/self/fd")
            if "/dev/nvidia" in os.readlink(f"/proc/self/fd/{fd}")
           ] if os.path.exists("/dev/nvidiactl") else True
assert gc.get_freeze_count() > 100_000
before = set(sys.modules)
from transformers import LlamaForCausalLM
late = {m.split(".")[0] for m in set(sys.modules) - before}
assert late <= {"transformers"}, late
"""


def test_the_zygote_has_torch_one_thread_and_no_model_class() -> None:
    """Also: a model class brings nothing heavy in after the fork."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], timeout=60, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
