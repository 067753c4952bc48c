"""A limit for the bodies of requests, whatever they say about their length."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class LimitedBodies:
    """Refuses requests of more bytes with status 413, before they are stored."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See https://asgi.readthedocs.io/en/latest/specs/www.html."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_bytes:
            await refusal(413, self._sentence)(scope, receive, send)
            return
        read = 0

        async def count() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_bytes:
                raise HTTPException(413, self._sentence)
            return message

        await self._app(scope, count, send)

    @property
    def _sentence(self) -> str:
        return f"the request has more than {self._max_bytes} bytes."


def refusal(status: int, sentence: str) -> JSONResponse:
    """An answer to a request that does not reach the application, in OpenAI's shape."""
    error = {"message": sentence, "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"error": error}, status)
