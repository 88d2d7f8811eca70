"""What would make the start of `cortex run` fail anyway, told before it begins."""

from __future__ import annotations

import socket
from pathlib import Path

from cortexd.ctl.run import plan


def obstacle(flags: plan.Flags, configs: dict[str, Path | None]) -> str:
    """One line, or "" when the way is free. Ports of a user's own file are its own."""
    for daemon in ("neurond", "cortexd"):
        if _answers(plan.control_socket(flags, daemon)):
            return f"{daemon} already runs in {flags.run_dir}; choose another --run-dir"
    for name, address in plan.addresses(flags).items():
        ours = configs["node" if name.startswith("node") else "gateway"] is None
        if ours and (reason := _taken(address)):
            return (
                f"{address} ({address.what}) can't be listened on: {reason};"
                f" choose another with {address.flag}"
            )
    return ""


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _taken(address: plan.Address) -> str:
    """Why the address can't be bound now; "" when it can."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host.strip("[]"), address.port))
        except OSError as error:
            return error.strerror or str(error)
        except OverflowError:
            return "no such port"
    return ""
