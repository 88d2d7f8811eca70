"""Datagrams to the service manager and journald, and sockets from it."""

from __future__ import annotations

import os
import secrets
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ipc import systemd


@pytest.fixture
def manager(tmp_path: Path) -> socket.socket:
    """A datagram socket in the manager's or journald's place."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(tmp_path / "sock"))
    sock.settimeout(5)
    return sock


def test_notify_sends_one_datagram_of_lines(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
    assert systemd.notify(READY=1, STATUS="two\nlines", MAINPID=7)
    assert manager.recv(1000) == b"READY=1\nSTATUS=two lines\nMAINPID=7"


def test_notify_reaches_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "cortex-test-" + secrets.token_hex(8)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name)
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        assert systemd.notify(WATCHDOG=1)
        assert sock.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "/" + "x" * 200])
def test_notify_without_a_manager_is_silent(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not systemd.notify(READY=1)


def test_a_manager_that_does_not_read_costs_a_bounded_time(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
    deadline_s = time.monotonic() + 20
    while True:
        before_s = time.monotonic()
        assert before_s < deadline_s
        if not systemd.notify(STATUS="x" * 1000):
            break
    assert time.monotonic() - before_s < 1


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "2500000"}, 2.5),
        ({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": str(os.getpid())}, 2.5),
        ({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "x"}, None),
    ],
)
def test_the_watchdog_is_for_this_process_or_nobody(
    environ: dict[str, str], expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert systemd.watchdog_s() == expected


ACTIVATED = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
from ipc import systemd
for name, sock in systemd.listen_fds().items():
    inheritable = os.get_inheritable(sock.fileno())
    print(name, sock.family.name, sock.getsockname(), inheritable, sock.fileno())
print([name for name in os.environ if name.startswith("LISTEN_")])
"""


def test_sockets_of_the_manager_arrive_by_name_and_are_not_passed_on(
    tmp_path: Path,
) -> None:
    tcp = socket.create_server(("127.0.0.1", 0))
    second = socket.create_server(("::1", 0), family=socket.AF_INET6)
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "s"))
    with tcp, second, unix:
        fds = [tcp.fileno(), second.fileno(), unix.fileno()]
        argv = [sys.executable, "-c", ACTIVATED]
        shell = " ".join(f"{fd + 100}<&{fd}" for fd in fds)
        moves = " ".join(f"{3 + i}<&{fd + 100}" for i, fd in enumerate(fds))
        done = subprocess.run(
            ["bash", "-c", f'exec {shell}; exec {moves}; exec "$@"', "-", *argv],
            pass_fds=fds,
            env=os.environ | {"LISTEN_FDS": "3", "LISTEN_FDNAMES": "http:http:control"},
            stdout=subprocess.PIPE,
            timeout=20,
            check=True,
        )
        lines = done.stdout.decode().splitlines()
        assert lines == [
            f"http AF_INET {tcp.getsockname()} False 3",
            f"http#2 AF_INET6 {second.getsockname()} False 4",
            f"control AF_UNIX {unix.getsockname()} False 5",
            "[]",
        ]


def test_sockets_for_another_process_are_not_taken() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:b:c"}
    assert systemd.listen_fds(environ) == {}
    assert environ == {}


@pytest.mark.parametrize("count", ["", "x", "-1"])
def test_a_count_of_sockets_that_is_none_gives_none(count: str) -> None:
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count}
    assert systemd.listen_fds(environ) == {}


def test_sockets_without_names_are_unknown() -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    fd = sock.detach()
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    taken = systemd.listen_fds(environ, first_fd=fd)
    assert list(taken) == ["unknown"]
    taken["unknown"].close()


def decode_native(record: bytes) -> dict[str, bytes]:
    """The reading side of journald's protocol, written from its description."""
    fields = {}
    while record:
        line, _, rest = record.partition(b"\n")
        if b"=" in line:
            name, _, value = line.partition(b"=")
            record = rest
        else:
            name = line
            (size,) = struct.unpack("<Q", rest[:8])
            value, record = rest[8 : 8 + size], rest[8 + size + 1 :]
        fields[name.decode()] = value
    return fields


def test_a_record_has_its_fields_one_by_one(manager: socket.socket) -> None:
    fields = {"MESSAGE": "a = b", "PRIORITY": 3, "MULTI": "x\ny=z\n", "EMPTY": ""}
    assert systemd.send_native(fields, Path(manager.getsockname()))
    assert decode_native(manager.recv(1000)) == {
        "MESSAGE": b"a = b",
        "PRIORITY": b"3",
        "MULTI": b"x\ny=z\n",
        "EMPTY": b"",
    }


def test_half_a_character_is_sent_as_an_escape(manager: socket.socket) -> None:
    assert systemd.send_native({"MESSAGE": "\ud83d"}, Path(manager.getsockname()))
    assert manager.recv(100) == b"MESSAGE=\\ud83d\n"


def test_a_record_too_big_for_a_datagram_goes_in_a_sealed_memfd(
    manager: socket.socket,
) -> None:
    fields = {"MESSAGE": "big", "BLOB": "z" * 600_000}
    assert systemd.send_native(fields, Path(manager.getsockname()))
    data, fds, _flags, _address = socket.recv_fds(manager, 100, 4)
    assert (data, len(fds)) == (b"", 1)
    with open(fds[0], "rb") as file:
        file.seek(0)
        assert decode_native(file.read())["BLOB"] == b"z" * 600_000
        with pytest.raises(PermissionError):
            os.ftruncate(file.fileno(), 0)
        with pytest.raises(PermissionError):
            os.pwrite(file.fileno(), b"x", 0)


def test_without_journald_a_record_is_not_taken(tmp_path: Path) -> None:
    assert not systemd.send_native({"MESSAGE": "x"}, tmp_path / "none")
