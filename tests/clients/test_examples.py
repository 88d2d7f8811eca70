"""The programs of examples/, run as they are against a node and a gateway."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import MODEL, Daemon, Node
from tests.httpclient import Http

EXAMPLES = Path(__file__).parents[2] / "examples"
DEADLINE_S = 60.0
CURL_FAILED = 22
ECHO = "echo: What is the capital of France?"


class Pair:
    """A node on a fake device, which answers with the question, and its gateway."""

    def __init__(self, node: Node, gateway: Daemon) -> None:
        self._environ = {
            "CORTEX_URL": f"http://{gateway.facts()['listen']['http']}",
            "CORTEX_NODE": node.http.url,
            "CORTEX_MODEL": MODEL,
        }

    def run(
        self, *command: str, stdin: str = "", **environ: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env={**os.environ, **self._environ, **environ},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def curl(self, *steps: str) -> subprocess.CompletedProcess[str]:
        return self.run(str(EXAMPLES / "curl.sh"), *steps)

    def chat(
        self, *words: str, stdin: str = "", **environ: str
    ) -> subprocess.CompletedProcess[str]:
        program = str(EXAMPLES / "chat.py")
        return self.run(sys.executable, program, *words, stdin=stdin, **environ)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    with Node(folder) as node:
        own = {"listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0", "workers": 1}
        nodes = [{"name": "local", "endpoint": node.http.url}]
        gateway = Daemon(folder, "cortexd", {"gateway": own, "neurons": nodes})
        gateway.start()
        try:
            gateway.wait(lambda: _serves(gateway), "the gateway serves no model")
            yield Pair(node, gateway)
            assert gateway.terminate() == 0
        finally:
            gateway.sweep()


def _serves(gateway: Daemon) -> bool:
    return Http(gateway.facts()["listen"]["http"], MODEL).chat().status == 200


def test_curl_lists_loads_chats_and_streams(pair: Pair) -> None:
    done = pair.curl()

    assert done.returncode == 0, done.stdout + done.stderr
    listed, loaded, answer, *frames = [ln for ln in done.stdout.splitlines() if ln]
    assert MODEL in [model["id"] for model in json.loads(listed)["data"]]
    assert json.loads(loaded)["status"] == "loaded"
    assert json.loads(answer)["choices"][0]["message"]["content"] == ECHO
    *chunks, usage, end = [frame.removeprefix("data: ") for frame in frames]
    texts = [json.loads(c)["choices"][0]["delta"].get("content", "") for c in chunks]
    assert "".join(texts) == ECHO
    assert json.loads(usage)["usage"]["completion_tokens"] == len(ECHO)
    assert end == "[DONE]"


def test_curl_shows_a_refusal_and_fails_with_it(pair: Pair) -> None:
    unloaded = pair.curl("unload")
    refused = pair.curl("chat")
    loaded = pair.curl("load", "chat")

    assert json.loads(unloaded.stdout)["status"] == "unloaded"
    assert refused.returncode == CURL_FAILED
    assert json.loads(refused.stdout)["error"]["code"] == "no_healthy_node"
    assert json.loads(loaded.stdout.splitlines()[0])["status"] == "loaded"
    assert pair.curl("sing").returncode == 2


def test_chat_prints_the_answer_to_its_arguments(pair: Pair) -> None:
    done = pair.chat("hello", "there")

    assert (done.returncode, done.stdout) == (0, "echo: hello there\n"), done.stderr


def test_chat_goes_on_line_by_line_with_the_first_model_that_is_loaded(
    pair: Pair,
) -> None:
    done = pair.chat(stdin="one\ntwo\n\n", CORTEX_MODEL="")

    assert done.returncode == 0, done.stderr
    assert done.stdout.split("> ") == ["", "echo: one\n", "echo: two\n", ""]


def test_chat_says_why_it_got_no_answer(pair: Pair) -> None:
    unknown = pair.chat("hello", CORTEX_MODEL="none")
    killer = "[[fake tokens=60 step_ms=2 fault=exit111 at=20]]"
    broken = pair.chat(killer)

    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "404" in unknown.stderr
    assert broken.returncode == 1
    assert broken.stdout.startswith("w0 w1")
    assert "killed a device" in broken.stderr
