"""The transports that bench/ring.py compares: our ring and what others use.

Each is made once before the fork. In the producer process `sender()` gives a blocking
send, as a device process would use it; in the consumer process `receive()` runs in an
event loop, as a front end would, and calls `on_record` until it answers True.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Protocol

import zmq
import zmq.asyncio

from ipc.bell import Bell, create_bell
from ipc.ring import Consumer, Producer, RingFull, create_ring

Send = Callable[[bytes], object]
OnRecord = Callable[[bytes | memoryview], bool]
_BATCH = 64
_LENGTH = struct.Struct("=I")


class Transport(Protocol):
    name: str

    def sender(self) -> Send: ...

    async def receive(self, ready: Callable[[], None], on_record: OnRecord) -> None: ...


class Ring:
    """Our ring; the bell is rung only for a sleeping consumer."""

    name = "ring"

    def __init__(self) -> None:
        self._fd = create_ring(1 << 20, generation=1)
        self._bell = Bell(create_bell())

    def sender(self) -> Send:
        producer = Producer(self._fd, generation=1)
        bell = self._bell

        def send(record: bytes) -> None:
            while True:
                try:
                    if producer.put(record):
                        bell.ring()
                    return
                except RingFull:
                    time.sleep(0.0002)

        return send

    async def receive(self, ready: Callable[[], None], on_record: OnRecord) -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        consumer = Consumer(self._fd, generation=1)

        def turn() -> None:
            for _ in range(_BATCH):
                view = consumer.get()
                if view is None:
                    if consumer.park():
                        return
                    continue
                finished = on_record(view)
                consumer.advance()
                if finished:
                    done.set_result(None)
                    return
            loop.call_soon(turn)

        def on_bell() -> None:
            self._bell.drain()
            consumer.unpark()
            turn()

        loop.add_reader(self._bell.fileno(), on_bell)
        turn()
        ready()
        await done


class UnixSocket:
    """A unix stream socket with a length before each record."""

    name = "unix socket"

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()

    def sender(self) -> Send:
        self._reader.close()
        return lambda record: self._writer.sendall(_LENGTH.pack(len(record)) + record)

    async def receive(self, ready: Callable[[], None], on_record: OnRecord) -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        await loop.create_connection(
            lambda: _Framed(on_record, done), sock=self._reader
        )
        ready()
        await done


class _Framed(asyncio.Protocol):
    def __init__(self, on_record: OnRecord, done: asyncio.Future[None]) -> None:
        self._on_record = on_record
        self._done = done
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        data = self._rest + data if self._rest else data
        view = memoryview(data)
        at = 0
        while len(data) - at >= 4:
            (length,) = _LENGTH.unpack_from(data, at)
            if len(data) - at - 4 < length:
                break
            if self._on_record(view[at + 4 : at + 4 + length]):
                self._done.set_result(None)
                return
            at += 4 + length
        self._rest = data[at:]


class Pipe:
    """multiprocessing.Pipe, read when the loop says that it is readable."""

    name = "multiprocessing.Pipe"

    def __init__(self) -> None:
        self._reader, self._writer = multiprocessing.Pipe(duplex=False)

    def sender(self) -> Send:
        return self._writer.send_bytes

    async def receive(self, ready: Callable[[], None], on_record: OnRecord) -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def on_readable() -> None:
            for _ in range(_BATCH):
                if not self._reader.poll(0):
                    return
                if on_record(self._reader.recv_bytes()):
                    loop.remove_reader(self._reader.fileno())
                    done.set_result(None)
                    return

        loop.add_reader(self._reader.fileno(), on_readable)
        # uvloop made it non-blocking; the Connection can't resume half a message.
        os.set_blocking(self._reader.fileno(), True)
        ready()
        await done


class Zmq:
    """pyzmq push and pull over ipc, received through zmq.asyncio."""

    name = "zmq.asyncio"

    def __init__(self) -> None:
        self._address = f"ipc://@cortex-bench-{os.getpid()}-{id(self)}"

    def sender(self) -> Send:
        push = zmq.Context().socket(zmq.PUSH)
        push.set_hwm(0)
        push.connect(self._address)
        return push.send

    async def receive(self, ready: Callable[[], None], on_record: OnRecord) -> None:
        pull = zmq.asyncio.Context().socket(zmq.PULL)
        pull.set_hwm(0)
        pull.bind(self._address)
        ready()
        while not on_record(await pull.recv()):
            pass


ALL: tuple[Callable[[], Transport], ...] = (Ring, UnixSocket, Pipe, Zmq)
