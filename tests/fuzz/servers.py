"""What the servers read from their clients, as functions of bytes; a converted models/tiny answers.

The bytes of a connection are handed to the protocol itself, so that no port, and no waiting for one, is needed.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz.parsers import Parse
from uvicorn import Config
from uvicorn.server import ServerState

import cabochon
from cabochon.model_queue import ModelQueue
from cabochon.server import ServerSettings, create_app
from cabochon.server_connections import PatientProtocol
from cabochon.wyoming_server import WyomingSettings, make_handler

ANSWER_SECONDS = 20.0


class _Connection(asyncio.Transport):
    """Keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 8642)})
        self.written = bytearray()
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0


class _Complaints(logging.Handler):
    """What uvicorn and asyncio log where something raised what nobody expected."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[BaseException | str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.found.append(error or record.getMessage())


def parse_http(model: cabochon.Model) -> Parse:
    """Requests, one behind the other on a connection."""
    settings = ServerSettings("tiny", max_bytes=200_000, max_tokens=4, time_limit=ANSWER_SECONDS)
    complaints = _complaints()

    async def talk(data: bytes) -> None:
        config = Config(create_app(model, settings), log_config=None, access_log=False)
        config.load()
        state = ServerState()
        protocol, connection = PatientProtocol(config, state, {}), _Connection()
        protocol.connection_made(connection)
        if data:  # a transport hands on nothing else
            protocol.data_received(data)
        # What is not whole waits for more, which does not come.
        ends = asyncio.get_running_loop().time() + 2 * ANSWER_SECONDS
        while state.tasks and asyncio.get_running_loop().time() < ends:
            if protocol.cycle is not None and protocol.cycle.more_body and not protocol.cycle.disconnected:
                await asyncio.sleep(0.01)
                protocol.connection_lost(None)
            await asyncio.sleep(0.002)
        assert not state.tasks, "a request was not answered in time"
        protocol.connection_lost(None)
        assert not connection.written.startswith(b"HTTP/1.1 500"), connection.written[:300]

    def parse(data: bytes) -> None:
        complaints.found.clear()
        asyncio.run(talk(data))
        _raise_first(complaints)

    return parse


def parse_wyoming(model: cabochon.Model) -> Parse:
    """Events of a client of Home Assistant's."""
    settings = WyomingSettings("tiny", targets=("de",), max_seconds=5.0, max_tokens=4, time_limit=ANSWER_SECONDS)
    complaints = _complaints()

    async def talk(data: bytes) -> None:
        queue = ModelQueue(settings.longest_queue, settings.time_limit)
        reader, connection = asyncio.StreamReader(), _Connection()
        loop = asyncio.get_running_loop()
        protocol = asyncio.StreamReaderProtocol(reader)
        protocol.connection_made(connection)
        writer = asyncio.StreamWriter(connection, protocol, reader, loop)
        reader.feed_data(data)
        reader.feed_eof()
        try:
            await asyncio.wait_for(make_handler(reader, writer, model, queue, settings).run(), 2 * ANSWER_SECONDS)
        finally:
            queue.close()
        for _ in range(100):  # the place is left when the loop turns to it
            if queue.admitted:
                await asyncio.sleep(0.01)
        assert queue.admitted == 0, "a place in the line was kept"
        for line in bytes(connection.written).splitlines():
            if line.startswith(b'{"type"'):
                json.loads(line)

    def parse(data: bytes) -> None:
        complaints.found.clear()
        asyncio.run(talk(data))
        _raise_first(complaints)

    return parse


def _complaints() -> _Complaints:
    complaints = _Complaints()
    for name in ("uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [complaints], False
    return complaints


def _raise_first(complaints: _Complaints) -> None:
    for each in complaints.found:
        if isinstance(each, BaseException):
            raise each
        raise AssertionError(each)


SERVER_PARSERS: dict[str, Callable[[cabochon.Model], Parse]] = {"http": parse_http, "wyoming": parse_wyoming}


def convert_small_model(folder: Path) -> cabochon.Model:
    """models/tiny, converted into a folder."""
    from fuzz.parsers import TINY

    from cabochon_convert.convert import ConversionSettings, convert_checkpoint
    from cabochon_convert.recipes import RECIPES

    if not folder.exists():
        convert_checkpoint(TINY, folder, ConversionSettings(RECIPES["int4-mixed"]))
    return cabochon.load(folder)
