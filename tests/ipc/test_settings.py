"""Configuration files and variables, and what an operator reads when one is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc import settings
from ipc.settings import ConfigError
from ipc.tomllines import LineMap


@dataclass(frozen=True)
class Node:
    name: str = ""
    workers: int = field(default=2, metadata={"min": 1, "max": 64})
    token: str = field(default="", metadata={"secret": True})
    log: Literal["auto", "text", "json"] = "auto"


@dataclass(frozen=True)
class Limits:
    drain_s: float = field(default=30.0, metadata={"min": 0})
    strict: bool = False
    labels: tuple[str, ...] = ()
    ports: tuple[int, ...] = field(default=(), metadata={"min": 1})
    kind: str = field(default="lru", metadata={"choices": ("lru", "priority")})

    def __post_init__(self) -> None:
        if self.strict and self.drain_s == 0:
            raise ValueError("a strict drain needs drain_s")


@dataclass(frozen=True)
class Gateway:
    models: Path | None = field(default=None, metadata={"exists": "file"})
    folder: Path | None = field(default=None, metadata={"exists": "folder"})
    state: Path = Path("state")


@dataclass(frozen=True)
class Neuron:
    name: str
    endpoint: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    node: Node = Node()
    limits: Limits = Limits()
    gateway: Gateway = Gateway()
    neurons: tuple[Neuron, ...] = ()
    title: str = ""


def load(path: Path | None, **environ: str) -> Config:
    return settings.load(Config, path, env_prefix="TEST_", environ=environ)


def written(folder: Path, text: str) -> Path:
    path = folder / "test.toml"
    path.write_text(text)
    return path


def mistakes(folder: Path, text: str, **environ: str) -> list[str]:
    """Every message, without the folder."""
    path = written(folder, text)
    found = settings.problems(Config, path, env_prefix="TEST_", environ=environ)
    assert all("\n" not in str(error) for error in found)
    return [str(error).replace(f"{folder}/", "") for error in found]


def mistake(folder: Path, text: str, **environ: str) -> str:
    found = mistakes(folder, text, **environ)
    assert len(found) == 1, found
    return found[0]


def test_without_a_file_the_defaults_hold() -> None:
    assert load(None) == Config()


def test_every_kind_of_value_is_read(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        title = "t"
        node = { name = "a", workers = 3, log = "json" }
        [limits]
        drain_s = 5
        strict = true
        labels = ["x", "y"]
        ports = [1, 2]
        kind = "priority"
        [[neurons]]
        name = "n1"
        options.depth = { a = [1, 2] }
        [[neurons]]
        name = "n2"
        """,
    )
    config = load(path)
    assert config.title == "t"
    assert config.node == Node("a", 3, "", "json")
    assert config.limits == Limits(5.0, True, ("x", "y"), (1, 2), "priority")
    assert type(config.limits.drain_s) is float
    assert config.neurons == (
        Neuron("n1", "", {"depth": {"a": [1, 2]}}),
        Neuron("n2"),
    )


def test_an_unknown_key_is_named_with_line_section_and_the_nearest_key(
    tmp_path: Path,
) -> None:
    text = "\n[node]\nname = 'a'\n# workers\nworkres = 3\n"
    assert (
        mistake(tmp_path, text)
        == "test.toml:5: [node] workres: is not known (did you mean 'workers'?)"
    )


def test_a_key_in_the_wrong_section_is_sent_to_its_own(tmp_path: Path) -> None:
    assert mistake(tmp_path, "[node]\ndrain_s = 1\n") == (
        "test.toml:2: [node] drain_s: is not known"
        " (did you mean 'drain_s' in [limits]?)"
    )


def test_an_unknown_section_is_refused(tmp_path: Path) -> None:
    assert mistake(tmp_path, "title='x'\n[limit]\ndrain_s = 1\n") == (
        "test.toml:2: [limit]: is not known (did you mean 'limits'?)"
    )


def test_an_unknown_bare_key_is_refused(tmp_path: Path) -> None:
    assert mistake(tmp_path, "titel = 'x'\n") == (
        "test.toml:1: titel: is not known (did you mean 'title'?)"
    )


def test_an_error_in_an_array_of_tables_names_the_right_entry(tmp_path: Path) -> None:
    text = "[[neurons]]\nname='a'\n\n[[neurons]]\nname='b'\nendpiont='x'\n"
    assert mistake(tmp_path, text) == (
        "test.toml:6: [[neurons]] endpiont: is not known (did you mean 'endpoint'?)"
    )


def test_a_missing_required_key_names_its_table(tmp_path: Path) -> None:
    text = "[[neurons]]\nname='a'\n[[neurons]]\nendpoint='x'\n"
    assert mistake(tmp_path, text) == "test.toml:3: [[neurons]] name: is required"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("drain_s = 'x'", "drain_s: must be a number, not text"),
        ("drain_s = true", "drain_s: must be a number, not true or false"),
        ("drain_s = -1", "drain_s: must be at least 0, not -1.0"),
        ("drain_s = nan", "drain_s: must be finite"),
        ("drain_s = inf", "drain_s: must be finite"),
        ("strict = 1", "strict: must be true or false, not a whole number"),
        ("labels = 'x'", "labels: must be a list, not text"),
        ("labels = [1]", "labels: must be text, not a whole number"),
        ("ports = [1.5]", "ports: must be a whole number, not a number"),
        ("ports = [true]", "ports: must be a whole number, not true or false"),
        ("ports = [0]", "ports: must be at least 1, not 0"),
        ("kind = 'lur'", "kind: must be one of lru, priority, not 'lur'"),
    ],
)
def test_a_wrong_value_is_refused(tmp_path: Path, line: str, message: str) -> None:
    assert mistake(tmp_path, f"[limits]\n{line}\n").startswith(
        f"test.toml:2: [limits] {message}"
    )


def test_a_wrong_choice_names_the_nearest(tmp_path: Path) -> None:
    assert "(did you mean 'priority'?)" in mistake(tmp_path, "[limits]\nkind='prio'\n")


def test_a_literal_takes_its_words_only(tmp_path: Path) -> None:
    assert "must be one of auto, text, json" in mistake(tmp_path, "[node]\nlog='x'\n")


def test_a_value_over_its_maximum_is_refused(tmp_path: Path) -> None:
    assert "at most 64, not 65" in mistake(tmp_path, "[node]\nworkers=65\n")


def test_a_section_must_be_a_table(tmp_path: Path) -> None:
    assert mistake(tmp_path, "limits = 3\n") == (
        "test.toml:1: [limits]: must be a table, not a whole number"
    )


def test_a_check_across_keys_names_the_section(tmp_path: Path) -> None:
    text = "\n[limits]\nstrict = true\ndrain_s = 0\n"
    assert (
        mistake(tmp_path, text) == "test.toml:2: [limits]: a strict drain needs drain_s"
    )


def test_a_secret_of_the_wrong_type_is_not_repeated(tmp_path: Path) -> None:
    assert "4711" not in mistake(tmp_path, "[node]\ntoken = 4711\n")


def test_all_mistakes_are_found_in_one_pass(tmp_path: Path) -> None:
    text = "[node]\nworkers = 'x'\n[limits]\nkind = 'y'\nnope = 1\n"
    found = mistakes(tmp_path, text, TEST_NOPE__X="1")
    assert [line.split(":")[1] for line in found[:3]] == ["2", "4", "5"]
    assert found[3].startswith("environment: TEST_NOPE__X: is not known")


def test_broken_toml_names_the_line(tmp_path: Path) -> None:
    assert mistake(tmp_path, "[node]\nname = 'a'\nworkers =\n").startswith(
        "test.toml:3: not TOML: Invalid value"
    )
    assert mistake(tmp_path, "[node]\nname = 'a").startswith("test.toml:2: not TOML: ")


def test_bytes_that_are_not_utf8_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "test.toml"
    path.write_bytes(b"title = 'a'\n# \xff\n")
    with pytest.raises(ConfigError) as raised:
        load(path)
    assert str(raised.value) == f"{path}:2: is not UTF-8"


def test_s42_a_missing_catalogue_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path / "models.toml")
    assert str(raised.value) == (
        f"{tmp_path}/models.toml: can't be read: No such file or directory"
    )


def test_a_folder_in_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path)


def test_a_file_without_an_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="is over"):
        load(Path("/dev/zero"))


def test_s42_a_relative_path_is_relative_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "etc"
    home.mkdir()
    (home / "models.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    path = written(home, "[gateway]\nmodels='models.toml'\nstate='../s'\nfolder='.'\n")
    config = load(path.relative_to(tmp_path))
    assert config.gateway.models == home / "models.toml"
    assert config.gateway.state == home / "../s"
    assert config.gateway.folder == home


def test_s42_a_path_that_must_exist_and_does_not_is_an_error(tmp_path: Path) -> None:
    assert mistake(tmp_path, "[gateway]\nmodels='m.toml'\n") == (
        "test.toml:2: [gateway] models: there is no file m.toml"
    )
    assert "there is no folder" in mistake(tmp_path, "[gateway]\nfolder='test.toml'\n")


def test_an_empty_path_is_none_or_an_error(tmp_path: Path) -> None:
    assert load(written(tmp_path, "[gateway]\nmodels=''\n")).gateway.models is None
    assert "must be a path" in mistake(tmp_path, "[gateway]\nstate=''\n")
    assert "must be text" in mistake(tmp_path, "[gateway]\nstate=1\n")


def test_the_home_of_a_user_who_is_not_there_is_an_error(tmp_path: Path) -> None:
    assert "no home" in mistake(tmp_path, "[gateway]\nstate='~nobody-of-that-name/x'\n")


def test_a_path_from_the_environment_is_taken_as_it_is(tmp_path: Path) -> None:
    config = load(written(tmp_path, ""), TEST_GATEWAY__STATE="x/y")
    assert config.gateway.state == Path("x/y")


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "[node]\nworkers = 3\nname = 'file'\n")
    config = load(path, TEST_NODE__WORKERS="5")
    assert (config.node.workers, config.node.name) == (5, "file")


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("TEST_LIMITS__DRAIN_S", "1.5", 1.5),
        ("TEST_LIMITS__DRAIN_S", "2", 2.0),
        ("TEST_LIMITS__STRICT", "true", True),
        ("TEST_LIMITS__STRICT", "0", False),
        ("TEST_LIMITS__STRICT", "Off", False),
        ("TEST_LIMITS__LABELS", "a, b", ("a", "b")),
        ("TEST_LIMITS__LABELS", '["a", "b,c"]', ("a", "b,c")),
        ("TEST_LIMITS__LABELS", "", ()),
    ],
)
def test_a_variable_becomes_its_keys_type(
    variable: str, text: str, value: object
) -> None:
    key = variable.split("__")[1].lower()
    assert getattr(load(None, **{variable: text}).limits, key) == value


def test_a_wrong_variable_is_named_itself() -> None:
    with pytest.raises(ConfigError) as raised:
        load(None, TEST_NODE__WORKERS="many")
    assert str(raised.value) == (
        "environment: TEST_NODE__WORKERS: must be a whole number, not text"
    )


def test_an_entry_of_a_list_from_a_variable_is_the_variables_mistake() -> None:
    with pytest.raises(ConfigError, match="^environment: TEST_LIMITS__PORTS: must be"):
        load(None, TEST_LIMITS__PORTS="1,x")


@pytest.mark.parametrize(
    "name", ["TEST_NODE__WORKRES", "TEST_X__Y", "TEST_NODE__NAME__X", "TEST_NEURONS__A"]
)
def test_an_unknown_variable_with_a_section_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^environment: {name}: is not known"):
        load(None, **{name: "1"})


def test_an_unknown_variable_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'TEST_NODE__WORKERS'"):
        load(None, TEST_NODE__WORKRES="1")


def test_variables_of_others_are_left_alone() -> None:
    assert load(None, TEST_RUN_DIR="/x", OTHER_A__B="1", TEST="2") == Config()


def test_a_variable_in_a_section_that_is_no_table_is_no_crash(tmp_path: Path) -> None:
    found = mistake(tmp_path, "node = 3\n", TEST_NODE__WORKERS="5")
    assert found == "test.toml:1: [node]: must be a table, not a whole number"


def test_dump_and_build_are_inverse(tmp_path: Path) -> None:
    config = load(
        written(
            tmp_path,
            "[gateway]\nstate='s'\n[limits]\nlabels=['a']\n[[neurons]]\nname='n'\n",
        )
    )
    plain = settings.dump(config)
    assert plain["gateway"]["state"] == str(tmp_path / "s")
    assert settings.build(Config, plain) == config


def test_build_refuses_what_the_class_does_not_know() -> None:
    with pytest.raises(ConfigError, match="node.*workres.*not known"):
        settings.build(Config, {"node": {"workres": 1}})
    with pytest.raises(ConfigError, match="^settings: must be a table, not a list$"):
        settings.build(Config, [])  # type: ignore[arg-type]


def test_redacted_hides_secrets_and_shows_that_there_is_one() -> None:
    plain = settings.redacted(Config(node=Node(name="a", token="hunter2")))
    assert plain["node"] == {"name": "a", "workers": 2, "token": "***", "log": "auto"}
    assert settings.redacted(Config())["node"]["token"] == ""


def test_the_line_of_a_key_is_found_past_comments_and_long_strings() -> None:
    lines = LineMap(
        'a = 1 # b = 2\n"c d" = """\n[x]\nb = 3\n"""\nb = \'\'\'x\'\'\'\n'
        '[x.y] # """\n\'k\' = [\n  1,\n]\nz.w = 1\n[[t]]\nn = 1\n[[t]]\n[t.u]\nn = 2\n'
    )
    assert lines.find(("a",)) == 1
    assert lines.find(("c d",)) == 2
    assert lines.find(("b",)) == 6
    assert lines.find(("x", "y")) == 7
    assert lines.find(("x", "y", "k")) == 8
    assert lines.find(("x", "y", "z", "w")) == 11
    assert lines.find(("t", 0, "n")) == 13
    assert lines.find(("t", 1)) == 14
    assert lines.find(("t", 1, "u", "n")) == 16
    assert lines.find(("t", 1, "u", "other")) == 15
    assert lines.find(("nothing",)) is None


@given(st.text(max_size=200))
def test_no_text_makes_the_line_scan_fail(text: str) -> None:
    LineMap(text).find(("a",))


@given(st.text(alphabet="[]{}=.\"'# \nabnode_limits01", max_size=80))
def test_any_file_is_read_or_refused_with_a_message(text: str) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(text)
        file.flush()
        path = Path(file.name)
        for error in settings.problems(Config, path, env_prefix="T_", environ={}):
            assert str(error).startswith(str(path))
