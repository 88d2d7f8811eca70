from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ipc.messages import Hello, Load, LoadFailed, Stop
from tests.neurond.device import tiny
from tests.neurond.device.host import Host
from tests.neurond.device.rig import Rig

ZYGOTE = """
import gc, os, sys, time
from neurond.device.preload import preload
preload()
import torch
models = [m for m in sys.modules if m.startswith("transformers.models.")
          and ".modeling_" in m and not m.startswith("transformers.models.auto")]
plain = [f"transformers.models.{name}.modeling_{name}"
         for name in ("llama", "mistral", "qwen2", "qwen3")]
models = [m for m in models if m not in plain]
assert not models, models
assert len(os.listdir("/proc/self/task")) == 1, os.listdir("/proc/self/task")
assert not torch.cuda.is_initialized()
fds = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
       if os.path.exists(f"/proc/self/fd/{fd}")]
assert not [name for name in fds if name.startswith("/dev/nvidia")], fds
assert gc.get_freeze_count() > 100_000
before = set(sys.modules)
if os.fork() == 0:
    from neurond.device import worker
    link_fd, page_fd = int(sys.argv[1]), int(sys.argv[2])
    worker.main("cpu-0", "cpu", 1, link_fd, page_fd, {"devices": {"threads": 1}})
os.close(int(sys.argv[1]))
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_device_forked_from_the_preloaded_process_serves(
    make_rig: Callable[..., Rig], tmp_path: Path
) -> None:
    """One thread, plain classes, no CUDA in the parent; quick to its first token."""
    folder = tiny.build("llama", tmp_path / "llama")
    prompt = tuple(range(20))
    host = Host()
    host.load(folder)
    [wanted] = host.run(prompt, max_tokens=8)

    def start(link_fd: int, page_fd: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", ZYGOTE, str(link_fd), str(page_fd)]
        return subprocess.Popen(command, pass_fds=(link_fd, page_fd))

    rig = make_rig(start=start)
    hello = rig.wait_report(Hello)
    assert hello.backend == "cpu"
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"\xff" * 100)
    rig.order(Load("broken", str(broken), "auto", "none", 0, {}))
    assert rig.wait_report(LoadFailed).error[0] == "load_failed"
    began_s = time.monotonic()
    rig.load("m", folder)
    side = rig.attach(1)
    side.ask(1, "", ids=prompt, max_tokens=8)
    side.wait_end(1)
    assert side.ids(1) == wanted
    assert time.monotonic() - began_s < 30  # an import after the fork would show
    rig.order(Stop())
    assert rig.wait_exit() == 0
