"""What the HTTP server says where something goes wrong: OpenAI's shape, a status, one sentence."""

from __future__ import annotations

from typing import Any

from cabochon.errors import FREE_MEMORY, CabochonError, PackageError, is_memory_error, missing_dependency
from cabochon.model_queue import BUSY, TOO_SLOW, BusyError

try:
    from fastapi import FastAPI, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from pydantic import BaseModel
    from starlette.exceptions import HTTPException as StarletteHTTPException
except ImportError as error:
    raise missing_dependency(str(error.name), "server") from None


class _Error(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """The body of an answer that is an error."""

    error: _Error


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": description}
    for status, description in (
        (400, "The request cannot be fulfilled."),
        (401, "The API key is missing or wrong."),
        (403, "The request is addressed to another server, or comes from the page of another site."),
        (408, "It took too long."),
        (413, "The request is too large."),
        (422, "The request has another shape than expected."),
        (429, "Too many requests wait."),
        (503, "The server cannot answer now: memory, its disk or the package."),
    )
}


ANSWERS: dict[int | str, dict[str, Any]] = ERRORS | {
    200: {"content": {kind: {} for kind in ("application/json", "text/event-stream", "text/plain")}}
}


def tell_error(error: Exception) -> tuple[int, str]:
    """Status and sentence of an error that is expected."""
    match error:
        case BusyError():
            return 429, BUSY
        case TimeoutError():
            return 408, TOO_SLOW
        case MemoryError() | RuntimeError():
            return 503, f"memory ran out on the server: {FREE_MEMORY}."
        case PackageError():
            return 503, " ".join(str(error).split())
        case StarletteHTTPException(__cause__=OSError() as cause):
            return 503, _disk_sentence(cause)
        case OSError():
            return 503, _disk_sentence(error)
        case StarletteHTTPException():
            return error.status_code, str(error.detail)
        case RequestValidationError():
            first = error.errors()[0]
            place = ".".join(str(each) for each in first["loc"][1:])
            return 422, f"{place or 'the request'}: {first['msg']}."
    return 400, " ".join(str(error).split())


def _disk_sentence(error: OSError) -> str:
    return f"the server cannot read or write a file of this request ({error.strerror}): look at its disk."


def error_content(status: int, message: str) -> ErrorAnswer:
    """The body for a status and a sentence."""
    kinds = {401: "authentication_error", 429: "rate_limit_error", 503: "server_error"}
    return ErrorAnswer(error=_Error(message=message, type=kinds.get(status, "invalid_request_error")))


def explain_errors(app: FastAPI) -> None:
    """Every expected error in OpenAI's shape."""

    async def explain(_: Request, error: Exception) -> Response:
        if isinstance(error, RuntimeError) and not is_memory_error(error):
            raise error
        status, message = tell_error(error)
        headers = getattr(error, "headers", None) or ({"Retry-After": "5"} if status == 429 else None)
        return JSONResponse(error_content(status, message).model_dump(), status, headers)

    system = (TimeoutError, MemoryError, OSError, RuntimeError)
    for kind in (BusyError, *system, CabochonError, StarletteHTTPException, RequestValidationError):
        app.add_exception_handler(kind, explain)
