"""Connections of the HTTP server: who sends a request one letter at a time, or reads no answer, does not keep his."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cabochon.errors import missing_dependency

if TYPE_CHECKING:
    from fastapi import FastAPI

try:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise missing_dependency(str(error.name), "server") from None

MOST_CONNECTIONS = 256
"""At a time; a process may have 1024 files open, and every request with a sound needs some."""
HEADER_SECONDS = 20.0
"""For a request to begin and for all of its headers; uvicorn 0.51 waits for ever."""


class PatientProtocol(H11Protocol):
    """HTTP/1.1 on a connection that ends where nothing happens."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.BaseProtocol.connection_made`."""
        super().connection_made(transport)
        self._waits_since = self.loop.time()
        self._was_stuck = False
        self._look_again: asyncio.TimerHandle | None = None
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
            return
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.BaseProtocol.connection_lost`."""
        if self._look_again is not None:
            self._look_again.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """The next request may begin."""
        self._waits_since = self.loop.time()
        super().on_response_complete()

    def _look(self) -> None:
        # It closes when all that was written has been read.
        closing = self.transport.is_closing()
        waits = not closing and (self.cycle is None or self.cycle.response_complete)
        # Only where nothing was read between two looks.
        stuck = self.flow.write_paused or closing
        if (waits and self.loop.time() - self._waits_since >= HEADER_SECONDS) or (stuck and self._was_stuck):
            self.transport.abort()
            return
        self._was_stuck = stuck
        self._look_again = self.loop.call_later(HEADER_SECONDS / 2, self._look)


def make_server(app: FastAPI, host: str, port: int, log_level: str = "warning") -> uvicorn.Server:
    """A server that listens at an address when it is run."""
    return uvicorn.Server(uvicorn.Config(app, host, port, log_level=log_level, http=PatientProtocol))
