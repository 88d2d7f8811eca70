"""The files in etc/ are what the real loaders read, and name every key there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from cortexd import config as gateway
from ipc import settings
from neurond import config as node

ETC = Path(__file__).parent.parent / "etc"
TEMPLATES = {"cortex.toml": gateway.Config, "models.toml": gateway.Catalogue}
TEMPLATES |= {"neuron.toml": node.Config}


def _keys(cls: type[Any]) -> Iterator[str]:
    """Every key of a configuration class, those of its sections and tables included."""
    hints = get_type_hints(cls)
    for field in fields(cls):
        yield field.name
        for kind in (hints[field.name], *get_args(hints[field.name])):
            if is_dataclass(kind):
                yield from _keys(kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_example_is_accepted_by_the_real_loader(name: str) -> None:
    found = settings.problems(
        TEMPLATES[name], ETC / name, env_prefix="NO_SUCH_PREFIX_", environ={}
    )

    assert found == []


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_example_names_every_key(name: str) -> None:
    text = (ETC / name).read_text()
    written = set(re.findall(r"^(?:# )?(\w+) =", text, re.MULTILINE))
    written |= set(re.findall(r"^(?:# )?\[+(\w+)\]", text, re.MULTILINE))

    assert set(_keys(TEMPLATES[name])) - written == set()


@pytest.mark.parametrize("name", ["cortex.toml", "neuron.toml"])
def test_an_example_states_the_defaults(name: str) -> None:
    given = settings.dump(
        settings.load(TEMPLATES[name], ETC / name, env_prefix="NO_", environ={})
    )
    default = settings.dump(
        settings.load(TEMPLATES[name], None, env_prefix="NO_", environ={})
    )

    given.pop("neurons", None)
    default.pop("neurons", None)
    assert given == default


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_commented_out_is_accepted_too(name: str, tmp_path: Path) -> None:
    text = (ETC / name).read_text()
    path = tmp_path / name
    path.write_text(re.sub(r"^# (?=\w+ =|\[)", "", text, flags=re.MULTILINE))
    (tmp_path / "models.toml").touch()

    found = settings.problems(TEMPLATES[name], path, env_prefix="NO_", environ={})

    assert [str(problem) for problem in found] == []
