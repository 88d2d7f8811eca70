"""Where daemons keep files, for every way they are started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ipc import paths


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (
        *("CORTEX_RUN_DIR", "STATE_DIRECTORY", "CACHE_DIRECTORY", "RUNTIME_DIRECTORY"),
        *("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"),
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


USER = {
    "HOME": "/home/u",
    "XDG_STATE_HOME": "/xs",
    "XDG_CACHE_HOME": "/xc",
    "XDG_RUNTIME_DIR": "/xr",
}
MANAGED = {
    "STATE_DIRECTORY": "/s/neurond:/s/other",
    "CACHE_DIRECTORY": "/c/neurond",
    "RUNTIME_DIRECTORY": "/r/neurond",
}


@pytest.mark.parametrize(
    ("environ", "uid", "expected"),
    [
        (
            {"CORTEX_RUN_DIR": "/t"} | MANAGED | USER,
            0,
            ("/t/neurond/state", "/t/neurond/cache", "/t/neurond/run"),
        ),
        (MANAGED | USER, 0, ("/s/neurond", "/c/neurond", "/r/neurond")),
        (USER, 0, ("/var/lib/neurond", "/var/cache/neurond", "/run/neurond")),
        (USER, 7, ("/xs/cortex/neurond", "/xc/cortex/neurond", "/xr/cortex/neurond")),
    ],
    ids=["run-dir", "managed", "root", "user"],
)
def test_each_convention_has_its_folders(
    environ: dict[str, str], uid: int, expected: tuple[str, ...]
) -> None:
    found = [
        paths.locate("neurond", kind, environ, uid)
        for kind in ("state", "cache", "run")
    ]
    assert [str(path) for path in found] == list(expected)


def test_a_user_without_xdg_has_the_standards_defaults(tmp_path: Path) -> None:
    environ = {"HOME": "/home/u", "XDG_CACHE_HOME": "relative/is/ignored"}
    state = paths.locate("neurond", "state", environ, 7)
    cache = paths.locate("neurond", "cache", environ, 7)
    run = paths.locate("neurond", "run", environ, 7)
    assert state == Path("/home/u/.local/state/cortex/neurond")
    assert cache == Path("/home/u/.cache/cortex/neurond")
    assert run == tmp_path / ".run/neurond/run"


def test_without_a_home_everything_is_below_the_working_folder(tmp_path: Path) -> None:
    assert paths.locate("d", "state", {}, 7) == tmp_path / ".run/d/state"


def test_folders_are_created_for_the_owner_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CORTEX_RUN_DIR", str(tmp_path / "a"))
    old = os.umask(0)
    try:
        made = [
            paths.state_dir("neurond"),
            paths.cache_dir("neurond"),
            paths.runtime_dir("neurond"),
        ]
    finally:
        os.umask(old)
    assert [p.name for p in made] == ["state", "cache", "run"]
    for folder in [*made, tmp_path / "a", tmp_path / "a/neurond"]:
        assert folder.stat().st_mode & 0o777 == 0o700
    assert paths.runtime_dir("neurond") == made[2], "an existing folder is taken"


def test_a_relative_run_dir_is_made_absolute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CORTEX_RUN_DIR", "x")
    assert paths.runtime_dir("neurond") == tmp_path / "x/neurond/run"


def test_a_file_in_place_of_the_folder_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        paths.state_dir("neurond")


def test_an_explicit_configuration_file_is_taken_though_it_is_missing() -> None:
    assert paths.config_file("neuron.toml", Path("/nowhere")) == Path("/nowhere")


def test_the_users_configuration_file_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    name = "test-neuron.toml"
    assert paths.config_file(name) is None
    (tmp_path / "cortex").mkdir()
    (tmp_path / "cortex" / name).touch()
    assert paths.config_file(name) == tmp_path / "cortex" / name


def test_with_a_run_dir_no_other_stacks_socket_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CORTEX_RUN_DIR", str(tmp_path))
    expected = [tmp_path / "neurond/run/control.sock"]
    assert paths.control_sockets("neurond") == expected
    assert not (tmp_path / "neurond").exists(), "looking creates nothing"


def test_control_sockets_are_searched_from_near_to_far(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/xr")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/managed")
    assert paths.control_sockets("neurond") == [
        Path("/managed/control.sock"),
        Path("/xr/cortex/neurond/control.sock"),
        tmp_path / ".run/neurond/run/control.sock",
        Path("/run/neurond/control.sock"),
    ]
