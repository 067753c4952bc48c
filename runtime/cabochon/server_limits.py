"""Limits for the bodies of requests, whatever they say about their length."""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cabochon.model_queue import BUSY

BODY_SECONDS = 30.0
"""For the next piece of a body."""
TOGETHER = 4
"""Requests of the largest size that may be in memory, or in files, at a time; of smaller ones more."""


class LimitedBodies:
    """Refuses requests of more bytes with status 413 before they are stored, with 408 those that stop in between, and
    with 429 those for which others leave no room.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._held = 0
        """Bytes of all requests that are not answered yet."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See https://asgi.readthedocs.io/en/latest/specs/www.html."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_bytes:
            await refusal(413, self._sentence)(scope, receive, send)
            return
        read, complete = 0, False

        async def count() -> Message:
            nonlocal read, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the request stopped for {BODY_SECONDS:.0f} s: send it again.") from None
            complete = not message.get("more_body", False)
            size = len(message.get("body", b""))
            read += size
            self._held += size
            if read > self._max_bytes:
                raise HTTPException(413, self._sentence)
            if self._held > TOGETHER * self._max_bytes:
                raise HTTPException(429, BUSY)
            return message

        try:
            await self._app(scope, count, send)
        finally:
            self._held -= read

    @property
    def _sentence(self) -> str:
        return f"the request has more than {self._max_bytes} bytes."


def refusal(status: int, sentence: str) -> JSONResponse:
    """An answer to a request that does not reach the application, in OpenAI's shape."""
    error = {"message": sentence, "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"error": error}, status)
