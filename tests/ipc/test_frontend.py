"""The HTTP front end with real arbiters, workers and sockets."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]
GET = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"
CLOSING = GET[:-2] + b"Connection: close\r\n\r\n"
WAIT_S = 15.0
"""For what happens at once, on a machine that is busy with something else."""


class Frontend:
    """An arbiter on a listening socket that the test owns."""

    def __init__(self, folder: Path, listener: socket.socket, **settings: Any) -> None:
        self.log = folder / "app.log"
        self.exits = folder / "exits.log"
        self.errors = folder / "stderr"
        self.obstacle = folder / "obstacle"
        self.listener = listener
        extra = {
            "log": str(self.log),
            "obstacle": str(self.obstacle),
            "child_exit": "tests.ipc.frontend_app:worker_gone",
        } | settings.pop("extra", {})
        self._settings = {
            "title_prefix": "testd",
            "app": "tests.ipc.frontend_app:build",
            "fds": [listener.fileno()],
            "workers": 1,
            "graceful_timeout_s": 10,
            "extra": extra,
            **settings,
        }

    def start(self, **environ: str) -> Frontend:
        mine = {
            "CORTEX_PARENT_PID": str(os.getpid()),
            "CHILD_EXIT_LOG": str(self.exits),
            "CORTEX_LOG": "json",
        }
        argv = ["-m", "tests.ipc.frontend_app", json.dumps(self._settings)]
        with self.errors.open("ab") as errors:
            self.arbiter = subprocess.Popen(
                [sys.executable, *argv],
                pass_fds=[self.listener.fileno()],
                cwd=ROOT,
                env=os.environ | mine | environ,
                stderr=errors,
            )
        return self

    def connect(self) -> socket.socket:
        client = socket.socket(self.listener.family)
        client.settimeout(WAIT_S)
        client.connect(self.listener.getsockname())
        return client

    def ask(self, request: bytes) -> bytes:
        """Everything that comes back until the other side closes."""
        with self.connect() as client:
            client.sendall(request)
            return read_all(client)

    def worker(self) -> dict[str, Any]:
        answer = self.ask(
            b"GET /worker HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        facts: dict[str, Any] = json.loads(answer.split(b"\r\n\r\n")[1])
        return facts

    def notes(self) -> list[str]:
        return self.log.read_text().split("\n")[:-1] if self.log.exists() else []

    def journal(self) -> list[dict[str, Any]]:
        return [json.loads(x) for x in self.errors.read_text().splitlines()]

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.arbiter.pid).children()

    def stop(self) -> int:
        self.arbiter.terminate()
        return self.arbiter.wait(WAIT_S)

    def kill(self) -> None:
        workers = self.workers() if self.arbiter.poll() is None else []
        self.arbiter.kill()
        self.arbiter.wait(WAIT_S)
        until(lambda: not living(workers))


def read_all(client: socket.socket) -> bytes:
    data = b""
    while True:
        try:
            more = client.recv(65536)
        except ConnectionResetError:
            return data
        if not more:
            return data
        data += more


def read_until(client: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        more = client.recv(65536)
        assert more, data
        data += more
    return data


def until(condition: Callable[[], Any], within_s: float = WAIT_S) -> Any:
    end_s = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < end_s, "it did not come to be"
        time.sleep(0.01)
    return value


def living(processes: list[psutil.Process]) -> list[int]:
    """Those that run; a zombie waits only for its new parent."""
    found = []
    for process in processes:
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


def error_of(answer: bytes) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(answer.split(b"\r\n\r\n")[1])["error"]
    return error


Starter = Callable[..., Frontend]


@pytest.fixture
def frontend(tmp_path: Path) -> Iterator[Starter]:
    """Makes front ends on one listening socket; they are gone after the test."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=500)
    made: list[Frontend] = []

    def make(**settings: Any) -> Frontend:
        made.append(Frontend(tmp_path, settings.pop("on", listener), **settings))
        return made[-1]

    yield make
    for each in made:
        each.kill()
    listener.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """One front end with short limits for all tests that leave it as it was."""
    listener = socket.create_server(("127.0.0.1", 0))
    front = Frontend(
        tmp_path_factory.mktemp("served"),
        listener,
        header_deadline_s=0.4,
        keep_alive_s=0.2,
        max_connections=20,
    )
    front.start().worker()
    yield front
    assert front.stop() == 0
    listener.close()


# --- what a request may look like


def test_more_than_100_headers_are_431(served: Frontend) -> None:
    answer = served.ask(b"GET /worker HTTP/1.1\r\n" + b"X-A: b\r\n" * 300 + b"\r\n")
    assert status_of(answer) == 431
    assert error_of(answer)["type"] == "invalid_request_error"
    assert b"\r\nconnection: close\r\n" in answer


def test_exactly_100_headers_are_served(served: Frontend) -> None:
    close = b"Connection: close\r\n"
    headers = b"Host: x\r\n" + b"X-A: b\r\n" * 98 + close + b"\r\n"
    assert status_of(served.ask(b"GET /worker HTTP/1.1\r\n" + headers)) == 200


def test_a_request_line_of_20_kb_is_414(served: Frontend) -> None:
    answer = served.ask(
        b"GET /worker?" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    )
    assert status_of(answer) == 414
    assert error_of(answer)["message"] == "Request line is too large"


def test_a_header_of_over_8_kib_is_431(served: Frontend) -> None:
    line = b"X-A: " + b"a" * 9000 + b"\r\n"
    assert status_of(served.ask(b"GET /worker HTTP/1.1\r\n" + line)) == 431


def test_a_header_block_of_over_64_kib_is_431(served: Frontend) -> None:
    with served.connect() as client:
        client.sendall(b"GET /worker HTTP/1.1\r\n")
        for _ in range(80):
            client.sendall(b"X-A: " + b"a" * 1000 + b"\r\n")
        answer = read_all(client)
    assert status_of(answer) == 431
    assert error_of(answer)["message"] == "the header block is too large"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /length HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        b"Content-Length: 5\r\n\r\n0\r\n\r\n",
        b"POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
        b"Content-Length: 6\r\n\r\nhello",
        b"GET /worker HTTP/1.1\nHost: x\n\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /worker HTTP/1.1\r\nHost : x\r\n\r\n",
    ],
    ids=["two-framings", "two-lengths", "bare-lf", "tls", "space-in-name"],
)
def test_an_ambiguous_request_is_400(served: Frontend, request_bytes: bytes) -> None:
    answer = served.ask(request_bytes)
    assert status_of(answer) == 400
    assert error_of(answer)["code"] == "invalid_request_error"


def test_a_chunked_body_arrives_whole(served: Frontend) -> None:
    head = b"POST /length HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    body = b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    answer = served.ask(head + b"Connection: close\r\n\r\n" + body)
    assert answer.endswith(b"\r\n\r\n11")


def test_a_client_that_expects_100_gets_it_before_it_sends(served: Frontend) -> None:
    head = b"POST /length HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
    with served.connect() as client:
        client.sendall(head + b"Content-Length: 5\r\nConnection: close\r\n\r\n")
        assert read_until(client, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"hello")
        assert read_all(client).endswith(b"\r\n\r\n5")


def test_three_pipelined_requests_get_three_answers_in_order(served: Frontend) -> None:
    with served.connect() as client:
        posts = [
            b"POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
            % (n, b"x" * n)
            for n in (1, 2, 3)
        ]
        client.sendall(b"".join(posts))
        answers = read_all(client).split(b"HTTP/1.1 200 OK\r\n")
        assert [answer[-1:] for answer in answers[1:]] == [b"1", b"2", b"3"]


def test_a_caller_can_not_pose_as_a_trusted_proxy(served: Frontend) -> None:
    claims = b"X-Forwarded-Proto: https\r\nSCRIPT_NAME: /x\r\nConnection: close\r\n\r\n"
    answer = served.ask(b"GET /worker HTTP/1.1\r\nHost: x\r\n" + claims)
    facts = json.loads(answer.split(b"\r\n\r\n")[1])
    assert (facts["scheme"], facts["root"]) == ("http", "")


# --- how long a connection may do nothing


def slowly(client: socket.socket, data: bytes, every_s: float) -> tuple[bytes, float]:
    """Send byte by byte until the other side answers; also how long that took."""
    begun_s = time.monotonic()
    client.settimeout(every_s)
    for index in range(len(data)):
        client.sendall(data[index : index + 1])
        try:
            answer = client.recv(1000)
        except TimeoutError:
            continue
        return answer, time.monotonic() - begun_s
    raise AssertionError("no answer")


def test_a_client_with_a_slow_header_is_closed_in_time_while_others_are_served(
    served: Frontend,
) -> None:
    result: list[tuple[bytes, float]] = []
    with served.connect() as slow:
        head = b"GET /worker HTTP/1.1\r\nX-Slow: " + b"a" * 1000
        thread = threading.Thread(
            target=lambda: result.append(slowly(slow, head, 0.05))
        )
        thread.start()
        served_meanwhile = 0
        while thread.is_alive():
            assert served.worker()["pid"]
            served_meanwhile += 1
        thread.join()
    answer, took_s = result[0]
    assert status_of(answer) == 408
    assert 0.35 < took_s < 5
    assert served_meanwhile > 3


def test_a_client_that_ends_its_side_has_left_once_it_has_asked_all(
    served: Frontend,
) -> None:
    with served.connect() as client:
        client.sendall(b"GET /stall HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: served.notes()[-1:] == ["stall begun"])
        client.shutdown(socket.SHUT_WR)
        until(lambda: served.notes()[-1:] == ["stall cancelled"])
        assert client.recv(100) == b""


def test_half_a_request_line_and_then_silence_is_closed(served: Frontend) -> None:
    begun_s = time.monotonic()
    assert status_of(served.ask(b"GET /wor")) == 408
    assert 0.35 < time.monotonic() - begun_s < 5


def test_a_connection_without_a_byte_is_closed_when_idle_for_too_long(
    served: Frontend,
) -> None:
    begun_s = time.monotonic()
    assert served.ask(b"") == b""
    assert 0.15 < time.monotonic() - begun_s < 5


def test_an_idle_connection_is_closed_after_its_answer(served: Frontend) -> None:
    with served.connect() as client:
        client.sendall(GET % b"worker")
        answer = read_until(client, b"]}")
        begun_s = time.monotonic()
        assert b"connection: close" not in answer.lower()
        assert client.recv(100) == b""
        assert 0.15 < time.monotonic() - begun_s < 5


def test_a_header_that_has_begun_is_not_cut_by_the_idle_limit(
    frontend: Starter,
) -> None:
    front = frontend(keep_alive_s=0.2)
    front.start().worker()
    with front.connect() as client:
        for _ in range(2):
            client.sendall(b"GET /wor")
            time.sleep(0.3)
            client.sendall(b"ker HTTP/1.1\r\nHost: x\r\n\r\n")
            read_until(client, b"]}")


def test_the_header_blocks_of_a_long_connection_do_not_add_up(
    frontend: Starter,
) -> None:
    front = frontend()
    front.start().worker()
    request = b"GET /worker HTTP/1.1\r\nX-A: " + b"a" * 7000
    with front.connect() as client:
        for _ in range(10):
            client.sendall(request)
            time.sleep(0.005)  # so that it arrives in two pieces
            client.sendall(b"\r\n\r\n")
            assert status_of(read_until(client, b"]}")) == 200


def test_a_header_pipelined_in_part_behind_a_request_has_a_deadline_too(
    served: Frontend,
) -> None:
    with served.connect() as client:
        client.sendall(GET % b"worker" + b"GET /wor")
        begun_s = time.monotonic()
        answers = read_all(client)
        assert b"HTTP/1.1 408" in answers
        assert 0.35 < time.monotonic() - begun_s < 5


def test_a_request_may_take_longer_than_any_limit_of_its_connection(
    served: Frontend,
) -> None:
    request = GET % b"stream?n=3&ms=200"
    with served.connect() as client:
        client.sendall(request[:20])
        time.sleep(0.05)  # so that it arrives in two pieces
        client.sendall(request[20:])
        assert read_all(client).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_one_connection_too_many_is_503_with_retry_after(served: Frontend) -> None:
    clients = []
    try:
        for _ in range(20):
            clients.append(served.connect())
            clients[-1].sendall(GET % b"stream?n=100&ms=100")
            clients[-1].recv(10)
        answer = served.ask(b"")
        assert status_of(answer) == 503
        assert b"\r\nretry-after: 1\r\n" in answer
    finally:
        for client in clients:
            client.close()
    until(lambda: served.ask(GET % b"worker").startswith(b"HTTP/1.1 200"))


# --- clients that leave, handlers that fail


@pytest.mark.parametrize("path", ["stream?n=1000&ms=10", "stall"])
def test_when_the_client_leaves_the_handler_is_cancelled_at_once(
    path: str, served: Frontend
) -> None:
    kind = path.split("?")[0]
    before = served.notes().count(f"{kind} cancelled")
    client = served.connect()
    client.sendall(GET % path.encode())
    if kind == "stream":
        client.recv(1000)
    else:
        until(lambda: served.notes()[-1:] == ["stall begun"])
    client.close()
    left_s = time.monotonic()
    until(lambda: served.notes().count(f"{kind} cancelled") == before + 1)
    assert time.monotonic() - left_s < 1


def test_a_client_that_does_not_read_is_cut_off_and_a_slow_one_is_not(
    frontend: Starter,
) -> None:
    front = frontend(write_stall_s=0.5).start()
    with front.connect() as deaf, front.connect() as slow:
        deaf.sendall(GET % b"flood")
        until(lambda: "flood cancelled" in front.notes())
        slow.sendall(CLOSING % b"flood")
        received = 0
        while more := slow.recv(1 << 20):
            received += len(more)
            time.sleep(0.02)
    assert received > 64 << 20
    assert front.notes().count("flood cancelled") == 1


def test_an_exception_is_500_for_the_client_and_has_its_cause_in_the_journal(
    served: Frontend,
) -> None:
    answer = served.ask(GET % b"fail")
    assert status_of(answer) == 500
    assert error_of(answer)["code"] == "internal_error"
    assert b"secret" not in answer
    record = until(lambda: served.journal()[-1:])[0]
    assert record["process"] == "testd"
    assert record["level"] == "error"
    assert record["cause"] == (
        "RuntimeError: the handler's secret <- KeyError: 'handle'"
    )
    assert "on_fail" in record["where"]


# --- processes


def test_a_worker_runs_uvloop_and_says_who_it_is(frontend: Starter) -> None:
    front = frontend(workers=2).start()
    seen: dict[int, dict[str, Any]] = {}
    while len(seen) < 2:
        facts = front.worker()
        seen[facts["number"]] = facts
    assert sorted(seen) == [1, 2]
    for number, facts in seen.items():
        assert facts["loop"] == "uvloop"
        assert facts["titles"] == [f"testd: worker {number}", "testd: frontend"]


def test_the_sockets_of_the_service_manager_are_not_passed_on(
    frontend: Starter, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        front = frontend().start(
            NOTIFY_SOCKET=str(tmp_path / "notify"),
            WATCHDOG_USEC="1000000",
            LISTEN_FDS="1",
            GUNICORN_CMD_ARGS="--bind 127.0.0.1:1",
        )
        environ = front.worker()["environ"]
        assert front.stop() == 0
        for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS"):
            assert name not in environ
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(100)


def test_the_backlog_is_not_cut_to_a_default(frontend: Starter) -> None:
    front = frontend().start()
    front.worker()
    info = front.listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    limit = struct.unpack("B" * 8 + "I" * 24, info)[13]
    most = int(Path("/proc/sys/net/core/somaxconn").read_text())
    assert limit == min(2048, most)


def test_sigterm_lets_a_stream_end_closes_idle_connections_and_exits_0(
    frontend: Starter,
) -> None:
    front = frontend(workers=2).start()
    until(lambda: front.notes().count("lifespan.startup") == 2)
    idle, stream = front.connect(), front.connect()
    idle.sendall(GET % b"worker")
    read_until(idle, b"]}")
    untouched = front.connect()
    stream.sendall(GET % b"stream?n=10&ms=100")
    stream.recv(10)
    front.arbiter.terminate()
    begun_s = time.monotonic()
    assert idle.recv(100) == b""
    assert untouched.recv(100) == b""
    assert front.arbiter.poll() is None, "the stream goes on"
    assert read_all(stream).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert front.arbiter.wait(WAIT_S) == 0
    assert time.monotonic() - begun_s < 5, "no more than the stream and a bit"
    assert front.notes().count("lifespan.shutdown") == 2
    for client in (idle, stream, untouched):
        client.close()


def test_a_stream_longer_than_the_drain_is_cut_and_the_exit_is_0(
    frontend: Starter,
) -> None:
    front = frontend(graceful_timeout_s=1, extra={"shutdown_s": 0.5}).start()
    with front.connect() as stream:
        stream.sendall(GET % b"stream?n=1000&ms=100")
        stream.recv(10)
        begun_s = time.monotonic()
        assert front.stop() == 0
        assert 0.9 < time.monotonic() - begun_s < 5
        assert not read_all(stream).endswith(b"0\r\n\r\n")
    assert front.notes()[-2:] == ["shutdown done", "stream cancelled"]


def test_sigterm_during_the_boot_does_not_wait_for_anybody(frontend: Starter) -> None:
    front = frontend(workers=2, extra={"boot_s": 30}).start()
    until(lambda: front.notes().count("booting") == 2)
    begun_s = time.monotonic()
    assert front.stop() == 0
    assert time.monotonic() - begun_s < 5


def test_signals_of_a_terminal_are_left_to_the_supervisor(frontend: Starter) -> None:
    front = frontend().start()
    with front.connect() as stream:
        stream.sendall(CLOSING % b"stream?n=5&ms=50")
        stream.recv(10)
        for pid in (front.arbiter.pid, front.workers()[0].pid):
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
                if number != signal.SIGUSR2 or pid == front.arbiter.pid:
                    os.kill(pid, number)
        assert read_all(stream).endswith(b"0\r\n\r\n")
    assert front.worker()["number"] == 1


def test_a_killed_worker_is_replaced_under_its_number(frontend: Starter) -> None:
    front = frontend(workers=2).start()
    until(lambda: front.notes().count("lifespan.startup") == 2)
    victim = until(lambda: (f := front.worker())["number"] == 1 and f)
    others = {worker.pid for worker in front.workers()} - {victim["pid"]}
    os.kill(victim["pid"], signal.SIGKILL)
    until(lambda: _replaced(front.worker(), victim))
    assert others < {worker.pid for worker in front.workers()}
    assert front.exits.read_text() == f"{victim['pid']}\n"


def _replaced(facts: dict[str, Any], victim: dict[str, Any]) -> bool:
    return bool(facts["number"] == victim["number"] and facts["pid"] != victim["pid"])


def test_a_worker_that_can_not_boot_at_first_ends_the_front_end(
    frontend: Starter,
) -> None:
    front = frontend()
    front.obstacle.touch()
    front.start()
    assert front.arbiter.wait(WAIT_S) not in (0, None)
    assert "told not to boot" in front.errors.read_text()


def test_a_module_to_preload_is_imported_before_the_first_fork(
    frontend: Starter,
) -> None:
    front = frontend(preload=["tests.ipc.no_such_module"]).start()
    assert front.arbiter.wait(WAIT_S) == 1
    assert "tests.ipc.no_such_module" in front.errors.read_text()
    assert not front.exits.exists()


def test_an_app_that_fails_to_start_is_never_served(frontend: Starter) -> None:
    front = frontend(extra={"fail_startup": True}).start()
    assert front.arbiter.wait(WAIT_S) not in (0, None)
    assert "told not to start" in front.errors.read_text()


def test_a_replacement_that_can_not_boot_does_not_end_the_others(
    frontend: Starter,
) -> None:
    front = frontend(workers=2).start()
    until(lambda: front.notes().count("lifespan.startup") == 2)
    front.obstacle.touch()
    victim = front.worker()["pid"]
    os.kill(victim, signal.SIGKILL)
    until(lambda: front.exits.exists() and len(front.exits.read_text().split()) >= 3)
    survivor = front.worker()["pid"]
    assert survivor != victim
    front.obstacle.unlink()
    until(lambda: front.worker()["pid"] not in (survivor, victim))
    assert front.arbiter.poll() is None


def test_a_unix_socket_stays_where_the_supervisor_put_it(
    frontend: Starter, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "http.sock"))
        listener.listen()
        front = frontend(on=listener).start()
        assert front.worker()["number"] == 1
        assert front.stop() == 0
        assert (tmp_path / "http.sock").exists()


def test_killing_the_arbiter_refuses_no_connection_and_leaves_no_worker(
    frontend: Starter,
) -> None:
    front = frontend(workers=2).start()
    front.worker()
    outcomes: dict[str, int] = {"served": 0, "cut": 0, "refused": 0}
    done = threading.Event()
    clients = threading.Thread(target=_keep_asking, args=(front, outcomes, done))
    clients.start()
    try:
        for _ in range(3):
            _kill_and_start_again(front, outcomes)
    finally:
        done.set()
        clients.join(WAIT_S)
    assert outcomes["refused"] == 0
    assert outcomes["cut"] <= 3
    assert outcomes["served"] > 15


def _kill_and_start_again(front: Frontend, outcomes: dict[str, int]) -> None:
    workers = front.workers()
    with front.connect() as stream:  # a worker would drain it first if it could
        stream.sendall(GET % b"stream?n=1000&ms=50")
        stream.recv(10)
        front.arbiter.kill()
        front.arbiter.wait(WAIT_S)
        until(lambda: not living(workers), within_s=2)
    enough = outcomes["served"] + 5
    front.start()
    until(lambda: outcomes["served"] > enough)


def _keep_asking(
    front: Frontend, outcomes: dict[str, int], done: threading.Event
) -> None:
    while not done.wait(0.002):
        try:
            ok = front.worker()["pid"] > 0
        except ConnectionRefusedError:
            outcomes["refused"] += 1
        except (OSError, IndexError):
            outcomes["cut"] += 1
        else:
            outcomes["served"] += ok


def test_when_the_supervisor_is_killed_arbiter_and_workers_die_with_it(
    tmp_path: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        front = Frontend(tmp_path, listener, workers=2)
        program = (
            "import os, subprocess, sys, time\n"
            "fd = int(sys.argv[1])\n"
            "env = os.environ | {'CORTEX_PARENT_PID': str(os.getpid())}\n"
            "argv = [sys.executable, '-m', 'tests.ipc.frontend_app', sys.argv[2]]\n"
            "child = subprocess.Popen(argv, pass_fds=[fd], env=env)\n"
            "print(child.pid, flush=True)\n"
            "time.sleep(60)\n"
        )
        fd = listener.fileno()
        argv = [sys.executable, "-c", program, str(fd), json.dumps(front._settings)]
        with subprocess.Popen(
            argv, pass_fds=[fd], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as supervisor:
            assert supervisor.stdout
            arbiter = psutil.Process(int(supervisor.stdout.readline()))
            front.worker()
            family = [arbiter, *until(lambda: _both(arbiter))]
            with front.connect() as stream:
                stream.sendall(GET % b"stream?n=1000&ms=50")
                stream.recv(10)
                supervisor.kill()
                until(lambda: not living(family), within_s=2)


def _both(arbiter: psutil.Process) -> list[psutil.Process]:
    workers = arbiter.children()
    return workers if len(workers) == 2 else []
