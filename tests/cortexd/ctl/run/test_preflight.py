"""What would make a start fail is told before anything starts."""

from __future__ import annotations

import socket
from pathlib import Path

from cortexd.ctl.run import plan
from cortexd.ctl.run.preflight import obstacle
from tests.cortexd.ctl.running import stand_in

NONE: dict[str, Path | None] = {"gateway": None, "node": None}


def _flags(run_dir: Path, **ports: int) -> plan.Flags:
    free = {"port": 0, "metrics_port": 0, "node_port": 0, "node_metrics_port": 0}
    return plan.Flags(run_dir, **{**free, **ports})


def test_a_free_way_has_no_obstacle(tmp_path: Path) -> None:
    assert obstacle(_flags(tmp_path), NONE) == ""


def test_a_taken_port_is_named_with_the_flag_that_moves_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        problem = obstacle(_flags(tmp_path, node_port=port), NONE)

    assert problem == (
        f"127.0.0.1:{port} (node) can't be listened on: Address already in use;"
        " choose another with --node-port"
    )


def test_a_port_that_is_none_is_an_obstacle(tmp_path: Path) -> None:
    assert "no such port" in obstacle(_flags(tmp_path, port=70000), NONE)


def test_ports_of_a_users_own_file_are_left_to_the_daemon(tmp_path: Path) -> None:
    own: dict[str, Path | None] = {"gateway": tmp_path / "cortex.toml", "node": None}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        assert obstacle(_flags(tmp_path, port=port), own) == ""


def test_a_folder_in_use_is_an_obstacle(tmp_path: Path) -> None:
    with stand_in(tmp_path, "node"):
        problem = obstacle(_flags(tmp_path), NONE)

    assert problem.startswith(f"neurond already runs in {tmp_path}")
