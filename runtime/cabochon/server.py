"""An HTTP server with OpenAI's shapes: speech and chat for whatever speaks that protocol, on one model."""

from __future__ import annotations

import asyncio
import hmac
import json
import shutil
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cabochon.answer import Translation
from cabochon.errors import (
    AudioError,
    CabochonError,
    RequestError,
    missing_dependency,
)
from cabochon.long_speech import SpokenPart, part_of
from cabochon.model_queue import Job, ModelQueue
from cabochon.pipeline import Model
from cabochon.sampling import SamplingSettings
from cabochon.speech_task import SpeechTask
from cabochon.transcript import format_srt, format_vtt
from cabochon.wav import SoundFile
from cabochon.web_page import make_web_page

try:
    from fastapi import Depends, FastAPI, File, Form, HTTPException, Request, Response, UploadFile
    from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse

    from cabochon.server_errors import ANSWERS, ERRORS, error_content, explain_errors, tell_error
    from cabochon.server_limits import LimitedBodies
    from cabochon.server_origins import OwnOrigins
    from cabochon.server_requests import ChatRequest
    from cabochon.server_thoughts import ThoughtPiece, count_usage, thinking
    from cabochon.server_tools import NumberedCall, answer_format, finish_reason, number_calls, tool_choice
except ImportError as error:
    raise missing_dependency(str(error.name), "server") from None

LONGEST_SOUND = 24
"""Silence is passed over at some 100 times its speed on a Raspberry Pi, and nobody can be told meanwhile to stop: a
file of a few megabytes may hold weeks of it."""
Format = Literal["json", "text", "srt", "vtt", "verbose_json"]


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What the server allows."""

    name: str
    """Of the model, as clients see it."""
    api_key: str = ""
    """Without it nothing but the page and /healthz is answered; empty: everybody is."""
    longest_queue: int = 8
    """Requests that wait or are answered; more are refused with status 429."""
    time_limit: float = 600.0
    """Seconds for a request, waiting included; a sound may last `LONGEST_SOUND` times as long."""
    max_bytes: int = 64_000_000
    """Of a request."""
    max_tokens: int = 1024
    """Of an answer."""
    host: str = "127.0.0.1"
    """Listened at."""
    names: tuple[str, ...] = ()
    """Further ones under which the server may be addressed."""

    @property
    def longest_sound(self) -> float:
        """Seconds of a sound that is heard part by part."""
        return LONGEST_SOUND * max(self.time_limit, 60.0)


def create_app(model: Model, settings: ServerSettings) -> FastAPI:
    """The server as an ASGI application, which closes the model's line when it ends."""
    queue = ModelQueue(settings.longest_queue, settings.time_limit)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        queue.close()

    app = FastAPI(title="cabochon", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(LimitedBodies, max_bytes=settings.max_bytes)
    app.add_middleware(OwnOrigins, host=settings.host, names=settings.names)
    explain_errors(app)
    page = make_web_page(settings.name, settings.max_bytes)

    def check_key(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if settings.api_key and not hmac.compare_digest(given.encode(), settings.api_key.encode()):
            raise HTTPException(401, "the API key is missing or wrong.", {"WWW-Authenticate": "Bearer"})

    guarded: dict[str, Any] = {"dependencies": [Depends(check_key)]}

    @app.get("/", include_in_schema=False)
    def web_page() -> Response:
        return HTMLResponse(page.content, headers=page.headers)

    @app.get("/healthz")
    def healthz() -> dict[str, Any]:
        return {"status": "ok", "requests": queue.admitted}

    @app.get("/v1/models", responses=ERRORS, **guarded)
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model_facts(settings.name)]}

    @app.post("/v1/audio/transcriptions", responses=ANSWERS, **guarded)
    async def transcriptions(
        file: Annotated[UploadFile, File()],
        language: Annotated[str | None, Form(max_length=40)] = None,
        response_format: Annotated[Format, Form()] = "json",
        stream: Annotated[bool, Form()] = False,
    ) -> Response:
        hear = _Hearing(SpeechTask(model, language, None, settings.max_tokens), settings.longest_sound)
        return await _heard(queue, file, hear, "transcribe", response_format, stream=stream)

    @app.post("/v1/audio/translations", responses=ANSWERS, **guarded)
    async def translations(
        file: Annotated[UploadFile, File()],
        language: Annotated[str | None, Form(max_length=40)] = None,
        target: Annotated[str, Form(max_length=40)] = "English",
        response_format: Annotated[Format, Form()] = "json",
        stream: Annotated[bool, Form()] = False,
    ) -> Response:
        if language is None:
            raise RequestError("the model has to know the spoken language: add the field language.")
        hear = _Hearing(SpeechTask(model, language, target, settings.max_tokens), settings.longest_sound)
        return await _heard(queue, file, hear, "translate", response_format, stream=stream)

    @app.post("/v1/chat/completions", responses=ANSWERS, **guarded)
    async def chat(request: ChatRequest) -> Response:
        return await _chat(queue, model, request, settings)

    return app


def _model_facts(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "cabochon"}


@dataclass(frozen=True, slots=True)
class _Hearing:
    """What to ask about a sound."""

    task: SpeechTask
    longest: float
    """Seconds that are listened to at all."""

    def pieces(self, path: Path, *, with_times: bool) -> Iterator[str | SpokenPart]:
        """Text as it comes, and every part when it has ended.

        A sound that the model takes whole is one part, unless times are asked for.

        Raises:
            AudioError: it cannot be read, or is too long.
        """
        task, audio = self.task, self.task.model.audio_model
        seconds = SoundFile(path, audio.sample_rate).seconds
        if seconds > self.longest:
            raise AudioError(
                f"the sound lasts {seconds:.0f} s, but this server listens to {self.longest:.0f} s: cut it into parts."
            )
        if with_times or seconds * audio.sample_rate > audio.max_samples:
            for part in task.answer_long(path):
                yield f"{task.text(part)} "
                yield part
            return
        answer = task.answer(path)
        if isinstance(answer, Translation):
            given = ""
            for _ in answer:
                if new := answer.translation.removeprefix(given):
                    given += new
                    yield new
        else:
            yield from answer
        yield part_of(answer, 0.0, seconds)


async def _heard(
    queue: ModelQueue, upload: UploadFile, hearing: _Hearing, task: str, shape: Format, *, stream: bool
) -> Response:
    """Answer a request that has a sound."""
    if stream and shape != "json":
        raise RequestError(f"what is streamed is JSON, not {shape}: leave out response_format.")
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="cabochon-"))
    path = folder / "sound"

    def work() -> Iterator[str | SpokenPart]:
        try:
            yield from hearing.pieces(path, with_times=shape in ("srt", "vtt", "verbose_json"))
        except AudioError as error:
            raise AudioError(str(error).replace(str(path), "the sound")) from None

    def clean_up() -> None:
        shutil.rmtree(folder, ignore_errors=True)

    try:
        with path.open("wb") as file:
            await asyncio.to_thread(shutil.copyfileobj, upload.file, file)
        job = queue.submit(work, clean_up)
    except BaseException:
        clean_up()
        raise
    if stream:
        return await _streamed(job, lambda piece: {"type": "transcript.text.delta", "delta": piece}, _done(hearing))
    parts = [item for item in await job.all() if isinstance(item, SpokenPart)]
    texts = [hearing.task.text(part) for part in parts]
    if shape == "text":
        return PlainTextResponse("\n".join(texts) + "\n")
    if shape in ("srt", "vtt"):
        return PlainTextResponse((format_srt if shape == "srt" else format_vtt)(parts))
    content: dict[str, Any] = {"text": " ".join(texts)}
    if shape == "verbose_json":
        segments = [
            {"id": number, "start": part.start, "end": part.end, "text": text}
            for number, (part, text) in enumerate(zip(parts, texts, strict=True))
        ]
        end = parts[-1].end if parts else 0.0
        content |= {"task": task, "language": hearing.task.language, "duration": end, "segments": segments}
    return JSONResponse(content)


def _done(hearing: _Hearing) -> Callable[[list[Any]], list[str]]:
    def finish(items: list[Any]) -> list[str]:
        parts = [item for item in items if isinstance(item, SpokenPart)]
        event = {"type": "transcript.text.done", "text": " ".join(map(hearing.task.text, parts))}
        if hearing.task.target:
            event["transcript"] = " ".join(part.transcript for part in parts)
        return [json.dumps(event, ensure_ascii=False)]

    return finish


async def _chat(queue: ModelQueue, model: Model, request: ChatRequest, settings: ServerSettings) -> Response:
    sampling = request.sampling(SamplingSettings.of_checkpoint(model.package.manifest.sampling))
    messages, sound = await asyncio.to_thread(request.conversation, model.quote), request.sound()
    tools, form = request.tools or [], answer_format(request.response_format)
    choice, declared = tool_choice(request.tool_choice, tools), [tool.tool() for tool in tools]
    longest = request.longest_answer(settings.max_tokens)
    content = sound.content() if sound else None
    facts = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": settings.name}

    def work() -> Iterator[Any]:
        with tempfile.TemporaryDirectory(prefix="cabochon-") as folder:
            path = Path(folder) / "sound"
            try:
                if content is not None:
                    path.write_bytes(content)
                answer = model.chat(
                    messages, sampling, longest, None if content is None else path,
                    stop=request.stop_strings(), thinking=thinking(request.reasoning_effort), tools=declared,
                    tool_choice=choice, answer_format=form, sight=request.sight(),
                )  # fmt: skip
            except AudioError as error:
                raise AudioError(str(error).replace(str(path), "the sound")) from None
        given = thought = 0
        for piece in answer:
            if new := answer.thoughts[thought:]:
                thought += len(new)
                yield ThoughtPiece(new)
            if piece:
                yield piece
            for call in number_calls(answer, given):
                yield call
                given += 1
        yield answer

    job = queue.submit(work)
    if request.stream:
        chunk = facts | {"object": "chat.completion.chunk"}

        def piece_of(piece: str | NumberedCall | ThoughtPiece) -> dict[str, Any]:
            delta = {"role": "assistant", "content": piece} if isinstance(piece, str) else piece.delta()
            return chunk | {"choices": [{"index": 0, "delta": delta}]}

        def end_of(items: list[Any]) -> list[str]:
            end = chunk | {"choices": [{"index": 0, "delta": {}, "finish_reason": finish_reason(items[-1])}]}
            used = chunk | {"choices": [], "usage": count_usage(items[-1])}
            return [json.dumps(end), *([json.dumps(used)] if request.wants_usage else []), "[DONE]"]

        return await _streamed(job, piece_of, end_of)
    *items, answer = await job.all()
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if calls := [item.content() for item in items if isinstance(item, NumberedCall)]:
        message |= {"content": answer.text or None, "tool_calls": calls}
    if answer.thoughts:
        message["reasoning_content"] = answer.thoughts
    content_choice = {"index": 0, "message": message, "finish_reason": finish_reason(answer)}
    return JSONResponse(
        facts | {"object": "chat.completion", "choices": [content_choice], "usage": count_usage(answer)}
    )


async def _streamed(
    job: Job[Any], piece_of: Callable[[Any], dict[str, Any]], end_of: Callable[[list[Any]], list[str]]
) -> Response:
    """Server-sent events, the first of which is waited for: until then an error has a status of its own."""
    items = aiter(job)
    first = [item async for item in _first(items)]

    async def events() -> AsyncIterator[str]:
        seen = []
        try:
            async for item in _chained(first, items):
                seen.append(item)
                if isinstance(item, str | NumberedCall | ThoughtPiece):
                    yield _event(json.dumps(piece_of(item), ensure_ascii=False))
            for line in end_of(seen):
                yield _event(line)
        except (CabochonError, MemoryError, OSError) as error:
            yield _event(error_content(*tell_error(error)).model_dump_json())
        finally:
            job.cancel()

    return StreamingResponse(events(), media_type="text/event-stream")


async def _first(items: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for item in items:
        yield item
        return


async def _chained(first: list[Any], items: AsyncIterator[Any]) -> AsyncIterator[Any]:
    for item in first:
        yield item
    async for item in items:
        yield item


def _event(line: str) -> str:
    return f"data: {line}\n\n"
