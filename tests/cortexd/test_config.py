"""cortex.toml and models.toml: what is taken, what is refused, and in which words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cortexd import config
from ipc.settings import ConfigError

EXAMPLE = """\
[gateway]
listen = "0.0.0.0:31313"
metrics_listen = "0.0.0.0:31314"

[eviction]
strategy = "lru"
defrag_after_cycles = 50

[[neurons]]
name = "gpu-01"
endpoint = "http://10.0.0.11:13131"

[[neurons]]
name = "gpu-02"
endpoint = "http://10.0.0.12:13131"
"""
MODELS = """\
[[models]]
id = "big"
aliases = ["gpt-4o", "claude-sonnet"]
pinned = true
"""


def written(folder: Path, text: str, models: str | None = None) -> Path:
    path = folder / "cortex.toml"
    path.write_text(text)
    if models is not None:
        (folder / "models.toml").write_text(models)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        config.load(path, {})
    return str(caught.value)


def test_the_example_of_the_original_layout_loads_verbatim(tmp_path: Path) -> None:
    given = config.load(written(tmp_path, EXAMPLE), {}).config

    assert given.gateway.listen == "0.0.0.0:31313"
    assert given.gateway.metrics_listen == "0.0.0.0:31314"
    assert given.eviction == config.Eviction("lru", 50)
    assert [(n.name, n.endpoint) for n in given.neurons] == [
        ("gpu-01", "http://10.0.0.11:13131"),
        ("gpu-02", "http://10.0.0.12:13131"),
    ]


def test_without_a_file_the_defaults_hold() -> None:
    given = config.load(None, {})

    assert given.config == config.Config()
    assert given.catalogue.models == ()


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, EXAMPLE)

    given = config.load(path, {"CORTEX_GATEWAY__LISTEN": "127.0.0.1:0"})

    assert given.config.gateway.listen == "127.0.0.1:0"


def test_s42_a_catalogue_is_relative_to_the_file_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    path = written(tmp_path / "etc", '[gateway]\nmodels = "../list.toml"\n')
    (tmp_path / "list.toml").write_text(MODELS)
    monkeypatch.chdir("/")

    (model,) = config.load(path, {}).catalogue.models

    assert model.id == "big"


def test_a_models_toml_beside_the_file_is_found(tmp_path: Path) -> None:
    (model,) = config.load(written(tmp_path, EXAMPLE, MODELS), {}).catalogue.models

    assert model.aliases == ("gpt-4o", "claude-sonnet")


def test_s42_a_catalogue_that_is_named_and_missing_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, '[gateway]\nmodels = "models.toml"\n')

    message = refusal(path)

    assert message.startswith(f"{path}:2: [gateway] models: there is no file ")
    assert message.endswith("models.toml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[gateway]\nlisten_on = 1\n", ":2: [gateway] listen_on: is not known"),
        ("[gateway]\nworkers = '2'\n", ":2: [gateway] workers: must be a whole number"),
        ("[gateway]\nworkers = 0\n", ":2: [gateway] workers: must be at least 1"),
        ("[gateway]\nlisten = '0.0.0.0'\n", "must be HOST:PORT"),
        ("[eviction]\nstrategy = 'lfu'\n", ":2: [eviction] strategy: must be one of"),
        ("[[neurons]]\nname = 'a'\n", "[[neurons]] endpoint: is required"),
        ("[[neurons]]\nname = ''\nendpoint = 'http://a:1'\n", "a node needs a name"),
        ("[[neurons]]\nname = 'a'\nendpoint = 'ftp://a'\n", "must begin with http://"),
        (
            "[[neurons]]\nname = 'a'\nendpoint = 'http://a'\ntoken = \"a\\nb\"\n",
            "token",
        ),
        ("[gateway\n", ":1: not TOML"),
    ],
)
def test_a_mistake_is_named_with_its_place(
    tmp_path: Path, text: str, words: str
) -> None:
    assert words in refusal(written(tmp_path, text))


@pytest.mark.parametrize("key", ["name", "endpoint"])
def test_two_nodes_with_the_same_key_are_refused(tmp_path: Path, key: str) -> None:
    nodes = [
        {"name": "a", "endpoint": "http://a:1"},
        {"name": "b", "endpoint": "http://b:1"},
    ]
    nodes[1][key] = nodes[0][key]
    lines = ["[[neurons]]\n" + "".join([f"{k} = '{v}'\n" for k, v in n.items()])
             for n in nodes]  # fmt: skip

    assert "is there twice" in refusal(written(tmp_path, "".join(lines)))


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ("[[models]]\nid = 'a'\n[[models]]\nid = 'a'\n", "'a' is there twice"),
        ("[[models]]\nid = 'a'\naliases = ['a']\n", "'a' is there twice"),
        ("[[models]]\nid = ''\n", "must not be empty"),
        ("[[models]]\nid = 'a'\nsize = 1\n", "models.toml:3: [[models]] size: is not"),
    ],
)
def test_a_mistake_in_the_catalogue_is_refused(
    tmp_path: Path, models: str, words: str
) -> None:
    assert words in refusal(written(tmp_path, EXAMPLE, models))


def test_what_a_child_gets_is_what_was_read(tmp_path: Path) -> None:
    given = config.load(written(tmp_path, EXAMPLE, MODELS), {})

    assert config.build(given.dump()) == given


@pytest.mark.parametrize(
    "text", ["[gateway]\nlisten_on = 1\n", "[gateway]\nmodels = 'models.toml'\n", None]
)
def test_the_daemon_says_it_in_one_line_and_exits_with_100(
    tmp_path: Path, text: str | None
) -> None:
    path = tmp_path / "cortex.toml"
    if text is not None:
        path.write_text(text)

    ended = subprocess.run(
        [sys.executable, "-m", "cortexd", "--config", str(path)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"CORTEX_RUN_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert ended.returncode == 100
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith(f"cortexd: {path}")
