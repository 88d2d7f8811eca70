"""What `cortex run` starts, from flags and found files."""

from __future__ import annotations

import json
import shlex
import tomllib
from pathlib import Path

import pytest

from cortexd.ctl.run import plan

RUN_DIR = Path("/srv/try")


def test_without_configuration_everything_listens_on_loopback() -> None:
    flags = plan.Flags(RUN_DIR)

    gateway = tomllib.loads(plan.gateway_text(flags, "127.0.0.1:13131"))
    node = tomllib.loads(plan.node_text(flags))

    assert gateway["gateway"] == {
        "listen": "127.0.0.1:31313",
        "metrics_listen": "127.0.0.1:31314",
    }
    assert gateway["neurons"] == [
        {"name": "local", "endpoint": "http://127.0.0.1:13131"}
    ]
    assert node["node"] == {
        "listen": "127.0.0.1:13131",
        "metrics_listen": "127.0.0.1:13132",
    }


def test_typed_ports_go_into_files_that_are_ours() -> None:
    flags = plan.Flags(RUN_DIR, port=8080, node_port=0)

    text = plan.gateway_text(flags, "127.0.0.1:40001")
    environ = plan.environment(flags, {}, own_gateway=True, own_node=True)

    assert tomllib.loads(text)["gateway"]["listen"] == "127.0.0.1:8080"
    assert environ == {"CORTEX_RUN_DIR": "/srv/try"}


def test_typed_ports_override_files_of_the_user() -> None:
    flags = plan.Flags(RUN_DIR, host="0.0.0.0", port=8080, node_metrics_port=0)

    environ = plan.environment(flags, {"A": "b"}, own_gateway=False, own_node=False)

    assert environ == {
        "A": "b",
        "CORTEX_RUN_DIR": "/srv/try",
        "CORTEX_GATEWAY__LISTEN": "0.0.0.0:8080",
        "NEURON_NODE__METRICS_LISTEN": "0.0.0.0:0",
    }


@pytest.mark.parametrize(
    ("address", "typed"),
    [
        ("0.0.0.0:31313", "127.0.0.1:31313"),
        ("[::]:31313", "[::1]:31313"),
        (":31313", "127.0.0.1:31313"),
        ("192.0.2.7:80", "192.0.2.7:80"),
    ],
)
def test_a_wildcard_is_reached_on_loopback(address: str, typed: str) -> None:
    assert plan.reachable(address) == typed


def test_the_curl_line_survives_a_shell_and_carries_json() -> None:
    words = shlex.split(plan.curl_line("127.0.0.1:31313", "tiny"))

    assert words[:2] == ["curl", "http://127.0.0.1:31313/v1/chat/completions"]
    assert words[2:4] == ["-H", "content-type: application/json"]
    assert json.loads(words[5])["model"] == "tiny"
