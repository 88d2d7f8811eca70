"""A worker's surroundings in one loop: a supervisor's sockets and a device's end.

The sockets, the rings and the worker are the real ones; what the supervisor says and
what the device answers is the test's.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from socket import SOCK_SEQPACKET, SOCK_STREAM
from typing import Any

import msgspec

from ipc.attach import AttachServer, WorkerLink
from ipc.attachwire import Quarantine
from ipc.channel import DeviceEnd, create_pair
from ipc.control import ControlServer
from ipc.journal import Journal
from ipc.messages import Accepted, Cancel, Finished, RingDown, Submit, TokenRow, Tokens
from ipc.unixsocket import bind_unix
from neurond.device import fakemodel
from neurond.device.fakescript import IM_END, script_for
from neurond.frontend.app import Worker
from neurond.frontend.settings import WorkerSettings
from tests.neurond.serving.asgi import Answer, exchange

MODEL = "tiny"
JSON = {"content-type": "application/json"}
ORDERS = ("load", "unload", "events", "files")


class Device:
    """A device's end that answers from the prompt, unless a test takes over."""

    def __init__(self, end: DeviceEnd) -> None:
        self.end = end
        self.got: list[RingDown] = []
        self.on_submit: Callable[[Submit], None] = self.answer
        end.park()
        asyncio.get_running_loop().add_reader(end.bell.fileno(), self._read)

    def _read(self) -> None:
        while True:
            for message in self.end.receive():
                self.got.append(message)
                if isinstance(message, Submit):
                    self.on_submit(message)
            if self.end.park():
                return

    @property
    def cancelled(self) -> list[int]:
        return [m.id for m in self.got if isinstance(m, Cancel)]

    def answer(self, submit: Submit) -> None:
        num_prompt = submit.num_prompt
        script = script_for(submit.ids[:num_prompt], {}, submit.max_tokens)
        ids = script.answer[: submit.max_tokens]
        self.end.send(Accepted(submit.id, 0, 0))
        for index in range(len(submit.ids) - num_prompt, len(ids)):
            self.end.send(Tokens((row_of(submit, index, ids[index]),)))
        reason = "stop" if len(ids) < submit.max_tokens else "length"
        self.end.send(Finished(submit.id, reason, num_prompt, len(ids), 0))

    def begin(self, submit: Submit, text: str = "") -> None:
        """Accept, emit `text` and leave it there."""
        self.end.send(Accepted(submit.id, 0, 0))
        if text:
            row = TokenRow(submit.id, 0, tuple(text.encode()))
            self.end.send(Tokens((row,)))

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.end.bell.fileno())
        self.end.close()


def row_of(submit: Submit, index: int, token: int) -> TokenRow:
    """A logprob of -0.5 for every token, where asked; the newline never comes."""
    num_top = submit.sampling.logprobs
    if num_top < 0:
        return TokenRow(submit.id, index, (token,))
    top = ((token, -0.5), (10, float("-inf")))[:num_top]
    return TokenRow(submit.id, index, (token,), (-0.5,), (top,) if num_top else ())


class Stage:
    def __init__(self, tmp_path: Path, **settings: Any) -> None:
        self.path = tmp_path
        self.log = io.StringIO()
        self.links: list[WorkerLink] = []
        self.quarantined: list[Quarantine] = []
        self.orders: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, Any] = {}
        self.device: Device | None = None
        self.facts = facts_of(fakemodel.build(tmp_path / "model"))
        known = {"node": "n", "max_queue": 8, "body_bytes": 100_000, **settings}
        self.settings = WorkerSettings(
            attach_path=str(tmp_path / "attach.sock"),
            control_path=str(tmp_path / "control.sock"),
            **known,
        )

    async def start(self, *, device: bool = True) -> None:
        self.open_sockets()
        journal = Journal("test", stream=self.log, mode="text")
        self.worker = Worker(self.settings, journal)
        self.edge = self.worker.edge()
        await self.worker.start()
        await until(lambda: bool(self.links))
        if device:
            await self.raise_device(1)

    def open_sockets(self) -> None:
        """Be the supervisor's sockets, the first time or again."""
        loop = asyncio.get_running_loop()
        control = bind_unix(self.path / "control.sock", SOCK_STREAM, 0o600)
        handlers = {op: self._handler(op) for op in ORDERS}
        self.control = ControlServer(
            control,
            handlers,
            authorize=lambda _peer: True,
            topics={"state": lambda: self.facts, "events": None},
        )
        self.control.start(loop)
        attach = bind_unix(self.path / "attach.sock", SOCK_SEQPACKET, 0o600)
        self.attach = AttachServer(
            attach,
            on_attached=self.links.append,
            on_lost=lambda link: self.links.remove(link),
            limit=4,
            allow=lambda _peer: True,
            on_quarantine=lambda _link, told: self.quarantined.append(told),
        )
        self.attach.start(loop)

    async def raise_device(
        self,
        generation: int,
        name: str = "gpu-0",
        on_submit: Callable[[Submit], None] | None = None,
    ) -> Device:
        """Hand out a pair, as after a device became ready."""
        pair = create_pair(generation=generation)
        self.links[0].send_pair(name, generation, pair, sealed=False)
        self.device = Device(DeviceEnd(pair, generation=generation))
        self.device.on_submit = on_submit or self.device.on_submit
        await until(lambda: self.worker.is_attached(name))
        return self.device

    async def kill_device(
        self,
        generation: int,
        suspects: tuple[tuple[int, int], ...] = (),
        convicted: tuple[int, ...] = (),
    ) -> None:
        assert self.device is not None
        words = "killed"
        self.links[0].send_down("gpu-0", generation, words, suspects, convicted)
        self.device.close()
        self.device = None
        await until(lambda: not self.worker.is_attached("gpu-0"))

    async def stop(self) -> None:
        await self.worker.stop()
        self.attach.close()
        self.control.close()
        if self.device is not None:
            self.device.close()

    async def publish(self, **changes: Any) -> None:
        """Change the model's fact or, by `node_…`, the node's, and push it."""
        for name, value in changes.items():
            target = self.facts if name.startswith("node_") else self.facts["models"][0]
            target[name.removeprefix("node_")] = value
        self.facts["residency"] += 1
        self.control.publish("state", self.facts)
        residency = self.facts["residency"]
        await until(lambda: self.worker.facts["residency"] == residency)

    def ask(self, method: str, path: str, **more: Any) -> Coroutine[Any, Any, Answer]:
        return exchange(self.edge, method, path, **more)

    def post(self, path: str, **fields: Any) -> Coroutine[Any, Any, Answer]:
        """`fields` and the model's name as a document."""
        data = msgspec.json.encode({"model": MODEL, **fields})
        return self.ask("POST", path, body=data, headers=JSON)

    def chat(self, text: str = "hi", **fields: Any) -> Coroutine[Any, Any, Answer]:
        messages = [{"role": "user", "content": text}]
        headers = {**JSON, **fields.pop("headers", {})}
        on_chunk = fields.pop("on_chunk", lambda _chunk: None)
        body = {"model": MODEL, "messages": messages, **fields}
        data = msgspec.json.encode(body)
        path = "/v1/chat/completions"
        return self.ask("POST", path, body=data, headers=headers, on_chunk=on_chunk)

    def _handler(
        self, op: str
    ) -> Callable[[dict[str, Any], Any], Awaitable[dict[str, Any]]]:
        async def handle(args: dict[str, Any], _peer: Any) -> dict[str, Any]:
            self.orders.append((op, args))
            answer = self.answers[op]
            if isinstance(answer, Exception):
                raise answer
            if isinstance(answer, asyncio.Event):
                await answer.wait()
            return dict(answer)

        return handle


def facts_of(folder: Path) -> dict[str, Any]:
    model = {
        "id": MODEL, "status": "loaded", "stage": "", "percent": 100, "eta_s": None,
        "reason": "", "since_s": 1.0, "devices": ["gpu-0"],
        "servable": {"ok": True, "reason": ""}, "context": 8192, "dtype": "auto",
        "quant": "none", "digest": "d", "resident_bytes": 1, "pinned": False,
        "priority": 100, "last_used_s": 0.0, "running": 0, "waiting": 0,
        "load_seconds": 1.0, "architecture": "fake", "capabilities": {"chat": True},
        "source": str(folder), "folder": str(folder), "error": None,
    }  # fmt: skip
    device = {"device": "gpu-0", "kind": "fake", "state": "ready", "generation": 1}
    version = {"cortex": "0", "python": "3", "protocol": 1}
    return {
        "schema": 1, "node": "n", "boot_id": "b", "residency": 1, "time_s": 1.0,
        "started_s": 1.0, "version": version, "state": "ready", "health": [],
        "host": {"cores": 2, "hostname": "secret-host"}, "devices": [device],
        "models": [model], "listen": {"http": "127.0.0.1:1"},
    }  # fmt: skip


async def until(condition: Callable[[], bool], deadline_s: float = 5.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.002)


def on_stage(
    tmp_path: Path, play: Callable[[Stage], Awaitable[None]], **settings: Any
) -> None:
    """Run `play` on a stage; `device=False` leaves the device out."""
    device = settings.pop("device", True)

    async def run() -> None:
        stage = Stage(tmp_path, **settings)
        await stage.start(device=device)
        try:
            await play(stage)
        finally:
            await stage.stop()

    asyncio.run(asyncio.wait_for(run(), 20))


__all__ = ["IM_END", "JSON", "MODEL", "Device", "Stage", "on_stage", "until"]
