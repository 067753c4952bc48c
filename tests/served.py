"""The HTTP server in a thread of the tests."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import openai

import cabochon
from cabochon.server import ServerSettings, create_app
from cabochon.server_connections import make_server


class Served:
    """A server in a thread, at a port that was free."""

    def __init__(self, model: cabochon.Model, settings: ServerSettings) -> None:
        self.app = create_app(model, settings)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"http://127.0.0.1:{free.getsockname()[1]}"
        port = int(self.address.rpartition(":")[2])
        self._server = make_server(self.app, "127.0.0.1", port, "error")
        self._thread = threading.Thread(target=self._server.run)
        self._clients: list[openai.OpenAI] = []

    def __enter__(self) -> Served:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()
        self._server.should_exit = True
        self._thread.join()

    @property
    def connections(self) -> int:
        """That are open."""
        return len(self._server.server_state.connections)

    def client(self, key: str = "none") -> openai.OpenAI:
        client = openai.OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0)
        self._clients.append(client)
        return client


def wait_until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.05)
