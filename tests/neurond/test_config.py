"""neuron.toml: what a node may be told."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from ipc.settings import ConfigError, dump
from neurond import config
from neurond.config import Config, Model
from neurond.serving.hygiene import Rule

LISTS = ("model", "hygiene")
EXAMPLE = Path(__file__).resolve().parents[2] / "etc" / "neuron.toml"


def written(folder: Path, text: str) -> Path:
    path = folder / "neuron.toml"
    path.write_text(text)
    return path


def refusal(path: Path | None, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        config.load(path, environ or {})
    return str(caught.value)


def test_the_file_that_is_shipped_says_the_defaults() -> None:
    assert config.load(EXAMPLE, {}) == Config()


def test_without_a_file_the_defaults_hold() -> None:
    assert config.load(None, {}) == Config()


def test_the_file_that_is_shipped_names_every_field() -> None:
    text = EXAMPLE.read_text()
    shown = tomllib.loads(text)
    for section in fields(Config):
        if section.name in LISTS:
            continue
        for field in fields(type(getattr(Config(), section.name))):
            is_there = field.name in shown[section.name]
            assert is_there or f"# {field.name} = " in text, field.name
    for field in (*fields(Model), *fields(Rule)):
        assert f"# {field.name} = " in text, field.name


CHANGED: dict[str, dict[str, Any]] = {
    "node": {
        "name": "node-1",
        "listen": "127.0.0.1:0",
        "metrics_listen": "[::1]:9",
        "workers": 3,
        "token": "secret",
    },
    "devices": {
        "kind": "fake",
        "count": 4,
        "spawn": "exec",
        "threads": 2,
        "memory_bytes": 1024,
    },
    "limits": {
        "body_bytes": 4096,
        "max_queue": 5,
        "header_deadline_s": 1.5,
        "drain_s": 0.0,
        "decode_deadline_s": 2.5,
        "prefill_deadline_s": 3.5,
        "load_deadline_s": 4.5,
        "boot_deadline_s": 5.5,
        "queue_deadline_s": 6.5,
        "resume_deadline_s": 7.5,
        "quarantine_s": 8.5,
    },
    "engine": {
        "numerics": "invariant",
        "max_running": 9,
        "prefill_chunk": 64,
        "kv_bytes": 4096,
        "page_tokens": 32,
        "prefix_cache": False,
        "first_token_target_s": 0.0,
        "resume": False,
    },
    "faults": {"injection": True, "probe_every_s": 0.0},
    "models": {"default": ["a", "b"], "folders": ["/srv/models"]},
    "log": {"format": "json"},
    "paths": {"state": "/s", "cache": "/c", "runtime": "/r"},
}
FIELDS = [(section, key) for section, keys in CHANGED.items() for key in keys]


def toml(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize(("section", "key"), FIELDS)
def test_each_field_is_read_from_its_section(
    section: str, key: str, tmp_path: Path
) -> None:
    value = CHANGED[section][key]
    path = written(tmp_path, f"[{section}]\n{key} = {toml(value)}\n")
    assert dump(config.load(path, {}))[section][key] == value


@pytest.mark.parametrize(("section", "key"), FIELDS)
def test_each_field_refuses_another_type_by_name_and_line(
    section: str, key: str, tmp_path: Path
) -> None:
    path = written(tmp_path, f"\n[{section}]\n{key} = [{{}}]\n")
    told = refusal(path)
    assert told.startswith(f"{path}:3: [{section}] {key}"), told


def test_every_field_is_tried_here() -> None:
    known = {
        (section.name, field.name)
        for section in fields(Config)
        if section.name not in LISTS
        for field in fields(type(getattr(Config(), section.name)))
    }
    assert known == set(FIELDS)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("node", "workers", "0"),
        ("node", "listen", '"nowhere"'),
        ("node", "metrics_listen", '"host:70000"'),
        ("node", "token", '"nö"'),
        ("devices", "kind", '"tpu"'),
        ("devices", "count", "65"),
        ("devices", "memory_bytes", "-1"),
        ("limits", "drain_s", "-0.5"),
        ("limits", "max_queue", "true"),
        ("engine", "prefill_chunk", "1.5"),
        ("log", "format", '"xml"'),
    ],
)
def test_a_value_out_of_bounds_is_refused(
    section: str, key: str, value: str, tmp_path: Path
) -> None:
    assert f"[{section}]" in refusal(written(tmp_path, f"[{section}]\n{key}={value}"))


def test_an_unknown_key_is_refused_with_the_one_that_was_meant(tmp_path: Path) -> None:
    told = refusal(written(tmp_path, "[node]\nworker = 2\n"))
    assert "neuron.toml:2: [node] worker" in told
    assert "'workers'" in told


def test_an_unknown_section_is_refused(tmp_path: Path) -> None:
    assert "nodes" in refusal(written(tmp_path, "[nodes]\n"))


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "[node]\nworkers = 2\n")
    assert config.load(path, {"NEURON_NODE__WORKERS": "7"}).node.workers == 7


def test_an_unknown_variable_of_ours_is_refused() -> None:
    assert "NEURON_NODE__WORKER" in refusal(None, {"NEURON_NODE__WORKER": "2"})


def test_a_model_is_read_with_everything_it_may_say(tmp_path: Path) -> None:
    text = """
[[model]]
id = "org/tiny-1.5"
source = "/srv/tiny"
dtype = "float32"
quant = "q8"
context = 512
pinned = true
priority = 3
options = { load_ms = 5 }
"""
    assert config.load(written(tmp_path, text), {}).model == (
        Model(
            id="org/tiny-1.5",
            source="/srv/tiny",
            dtype="float32",
            quant="q8",
            context=512,
            pinned=True,
            priority=3,
            options={"load_ms": 5},
        ),
    )


@pytest.mark.parametrize(
    "model",
    [
        'source = "fake"',
        'id = "tiny"',
        'id = ".."\nsource = "fake"',
        'id = "a b"\nsource = "fake"',
        'id = "tiny"\nsource = ""',
        'id = "tiny"\nsource = "fake"\ncontext = -1',
        'id = "tiny"\nsource = "fake"\nlayers = 3',
        'id = "tiny"\nsource = 3',
    ],
)
def test_a_model_that_makes_no_sense_is_refused(model: str, tmp_path: Path) -> None:
    assert "model" in refusal(written(tmp_path, f"[[model]]\n{model}\n"))


def test_a_model_may_not_be_there_twice(tmp_path: Path) -> None:
    one = '[[model]]\nid = "tiny"\nsource = "fake"\n'
    assert "'tiny' is there twice" in refusal(written(tmp_path, one + one))


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("pattern = '('", "pattern is no regular expression"),
        ("pattern = '(a+)+$'", "pattern could take too long"),
        ("", "pattern is required: no shipped rule is 'mine'"),
        ("pattern = 'x'\nroles = ['robot']", "roles: 'robot'"),
        ("pattern = 'x'\naction = 'drop'", "action: must be one of strip, move"),
        ("pattern = 'x'\nfirst_chars = 70000", "first_chars: must be at most 65536"),
    ],
)
def test_s75_a_rule_that_makes_no_sense_is_refused_by_its_key(
    rule: str, says: str, tmp_path: Path
) -> None:
    text = refusal(written(tmp_path, f"[[hygiene]]\nname = 'mine'\n{rule}\n"))
    assert "[[hygiene]]" in text
    assert says in text


def test_a_rule_may_not_be_there_twice(tmp_path: Path) -> None:
    one = "[[hygiene]]\nname = 'billing-line'\nenabled = false\n"
    assert "'billing-line' is there twice" in refusal(written(tmp_path, one + one))


@pytest.mark.parametrize(
    ("source", "meant"),
    [
        ("models/tiny", "{here}/models/tiny"),
        ("tiny.gguf", "{here}/tiny.gguf"),
        ("../tiny", "{here}/../tiny"),
        ("/srv/tiny", "/srv/tiny"),
        ("fake", "fake"),
        ("embedded:smollm2", "embedded:smollm2"),
    ],
)
def test_s42_a_source_is_relative_to_its_file(
    source: str, meant: str, tmp_path: Path
) -> None:
    path = written(tmp_path, f'[[model]]\nid = "tiny"\nsource = "{source}"\n')
    assert config.load(path, {}).model[0].source == meant.format(here=tmp_path)


def test_s42_folders_are_relative_to_their_file(tmp_path: Path) -> None:
    path = written(tmp_path, '[models]\nfolders = ["mine"]\n[paths]\nstate = "s"\n')
    given = config.load(path, {})
    assert given.models.folders == (tmp_path / "mine",)
    assert given.paths.state == tmp_path / "s"
