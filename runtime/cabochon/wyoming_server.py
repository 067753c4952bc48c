"""A server for Home Assistant's voice assistants: https://github.com/OHF-Voice/wyoming, speech to text.

It offers one model that transcribes and one for each language to translate into; whoever asks chooses by name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

import cabochon
from cabochon.arrays import Float32Array
from cabochon.errors import FREE_MEMORY, CabochonError, RequestError, missing_dependency
from cabochon.languages import NAMES_BY_CODE, language_name
from cabochon.model_queue import BUSY, TOO_SLOW, BusyError, ModelQueue
from cabochon.pipeline import Model
from cabochon.received_speech import ReceivedSpeech
from cabochon.speech_task import SpeechTask
from cabochon.wav import ResampleStream

try:
    from wyoming.asr import Transcribe, Transcript
    from wyoming.audio import AudioChunk, AudioStart, AudioStop
    from wyoming.error import Error
    from wyoming.event import Event
    from wyoming.info import AsrModel, AsrProgram, Attribution, Describe, Info
    from wyoming.server import AsyncEventHandler, AsyncTcpServer
except ImportError as error:
    raise missing_dependency(str(error.name), "server") from None

SAMPLE_TYPES: dict[int, tuple[np.dtype[Any], int, float]] = {
    1: (np.dtype("u1"), 128, 2.0**7),
    2: (np.dtype("<i2"), 0, 2.0**15),
    4: (np.dtype("<i4"), 0, 2.0**31),
}
"""By bytes of a sample: its type, what silence is, and what is loudest."""
_US = Attribution("cabochon", "")
_LARGEST_EVENT = 1_000_000
"""Bytes; clients send fractions of a second."""
MOST_CONNECTIONS = 64
SPEAKING_SECONDS, IDLE_SECONDS = 30.0, 600.0
"""For which a client that speaks, and one that does not, may send nothing, or not read what it is sent."""


@dataclass(frozen=True, slots=True)
class WyomingSettings:
    """What the server offers and allows."""

    name: str
    """Of the model that transcribes."""
    language: str | None = None
    """That is spoken where a client does not say; None lets the model find out, which translations cannot."""
    targets: tuple[str, ...] = ()
    """Languages to translate into: a model each."""
    longest_queue: int = 8
    time_limit: float = 600.0
    """Seconds."""
    max_seconds: float = 300.0
    """Of sound in one request."""
    max_tokens: int = 1024

    def target_of(self, name: str | None) -> str | None:
        """Into which language a model of this name translates; None for the one that transcribes.

        Raises:
            RequestError: there is no such model.
        """
        if name in (None, "", self.name):
            return None
        for target in self.targets:
            if name == self.model_name(target):
                return target
        known = ", ".join([self.name, *(self.model_name(target) for target in self.targets)])
        raise RequestError(f"there is no model {name!r}, only {known}.")

    def model_name(self, target: str) -> str:
        """Of the model that translates into a language."""
        return f"{self.name}-to-{language_name(target).replace(' ', '-')}"


def describe(settings: WyomingSettings) -> Info:
    """What clients are offered."""
    version, languages = cabochon.__version__, sorted(NAMES_BY_CODE)
    about = {settings.name: "Transcribes"}
    about |= {settings.model_name(each): f"Translates into {language_name(each)}" for each in settings.targets}
    models = [AsrModel(name, _US, True, text, version, languages) for name, text in about.items()]
    return Info(asr=[AsrProgram("cabochon", _US, True, "Gemma 4 on this device", version, models)])


async def serve_wyoming(
    model: Model, settings: WyomingSettings, host: str, port: int, ready: Callable[[], None] = lambda: None
) -> None:
    """Answer until it is cancelled.

    Args:
        ready: called when clients can connect.

    Raises:
        RequestError: the address cannot be listened at.
    """
    queue = ModelQueue(settings.longest_queue, settings.time_limit)
    server = AsyncTcpServer(host, port)

    connected: set[asyncio.StreamWriter] = set()

    def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> AsyncEventHandler:
        connected.difference_update([each for each in connected if each.is_closing()])
        if len(connected) >= MOST_CONNECTIONS:
            writer.close()
        connected.add(writer)
        return make_handler(reader, writer, model, queue, settings)

    try:
        await server.start(handler)
        ready()
        await asyncio.Event().wait()
    except OSError:
        raise RequestError(f"{host}:{port} cannot be listened at: choose another --host or --port.") from None
    finally:
        await server.stop()
        queue.close()


def make_handler(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    model: Model,
    queue: ModelQueue,
    settings: WyomingSettings,
) -> AsyncEventHandler:
    """What answers one client as long as it runs."""
    return _Handler(_LimitedReader(reader), writer, model, queue, settings)


class _LimitedReader:
    """Refuses events that are too large to be speech, and waits for none for ever."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self.patience = IDLE_SECONDS
        """Seconds that the rest of a line or of an event may take."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    async def readexactly(self, count: int) -> bytes:
        """See `asyncio.StreamReader.readexactly`; ends the connection where it is too much, or takes too long."""
        if not 0 <= count <= _LARGEST_EVENT:
            raise ConnectionError(f"an event of {count} bytes")
        async with asyncio.timeout(self.patience):
            return await self._reader.readexactly(count)

    async def readline(self) -> bytes:
        """See `asyncio.StreamReader.readline`; TimeoutError where none comes."""
        async with asyncio.timeout(self.patience):
            return await self._reader.readline()


class _Handler(AsyncEventHandler):
    """One client."""

    def __init__(
        self,
        reader: _LimitedReader,
        writer: asyncio.StreamWriter,
        model: Model,
        queue: ModelQueue,
        settings: WyomingSettings,
    ) -> None:
        super().__init__(cast(asyncio.StreamReader, reader), writer)
        self._limited = reader
        self._model, self._queue, self._settings = model, queue, settings
        self._wish = Transcribe()
        self._speech: ReceivedSpeech | None = None
        self._samples = 0
        self._failed = False
        self._rate = model.audio_model.sample_rate
        self._resampling = ResampleStream(self._rate, self._rate)

    async def run(self) -> None:
        """Receive events; what is no event ends the connection."""
        try:
            await super().run()
        except (
            ValueError, KeyError, TypeError, AttributeError, EOFError, ConnectionError, TimeoutError, RecursionError,
            OverflowError,
        ):  # fmt: skip
            self.writer.close()
        finally:
            self._forget()

    async def write_event(self, event: Event) -> None:
        """See `AsyncEventHandler.write_event`; TimeoutError where nobody reads it."""
        async with asyncio.timeout(SPEAKING_SECONDS):
            await super().write_event(event)

    async def handle_event(self, event: Event) -> bool:
        """See `AsyncEventHandler.handle_event`."""
        if self._failed:
            # A client that still sends would lose the error, were the connection closed.
            return not AudioStop.is_type(event.type)
        try:
            return await self._handle(event)
        except (CabochonError, BusyError, MemoryError, OSError) as error:
            self._forget()
            self._failed = True
            await self.write_event(Error(_sentence(error)).event())
            return not AudioStop.is_type(event.type)

    async def _handle(self, event: Event) -> bool:
        if Describe.is_type(event.type):
            await self.write_event(describe(self._settings).event())
        elif Transcribe.is_type(event.type):
            self._wish = Transcribe.from_event(event)
        elif AudioStart.is_type(event.type):
            self._forget()
        elif AudioChunk.is_type(event.type):
            self._hear(AudioChunk.from_event(event))
        elif AudioStop.is_type(event.type):
            await self.write_event(Transcript(await self._understand()).event())
            return False
        return True

    def _hear(self, chunk: AudioChunk) -> None:
        samples = samples_of(chunk)
        if self._speech is None:
            self._rate = chunk.rate
            self._resampling = ResampleStream(chunk.rate, self._model.audio_model.sample_rate)
            self._speech = self._begin()
            self._limited.patience = SPEAKING_SECONDS
        if chunk.rate != self._rate:
            raise RequestError(f"the sound changes from {self._rate} samples a second to {chunk.rate}: send one rate.")
        self._samples += len(samples)
        if self._samples > self._settings.max_seconds * chunk.rate:
            raise RequestError(f"the sound is longer than {self._settings.max_seconds:.0f} s: end it at a pause.")
        self._speech.push(self._resampled(samples))

    def _begin(self) -> ReceivedSpeech:
        settings, language = self._settings, self._wish.language or self._settings.language
        task = SpeechTask(self._model, language, settings.target_of(self._wish.name), settings.max_tokens)
        return ReceivedSpeech(self._queue, task)

    async def _understand(self) -> str:
        speech = self._speech or self._begin()
        speech.push(self._resampled(np.zeros(0, np.float32), last=True))
        parts = await speech.finish()
        self._forget()
        return " ".join(map(speech.task.text, parts))

    def _resampled(self, samples: Float32Array, *, last: bool = False) -> Float32Array:
        return np.clip(self._resampling.push(samples, last=last), -1.0, 1.0)

    def _forget(self) -> None:
        if self._speech is not None:
            self._speech.cancel()
        self._speech, self._samples = None, 0
        self._limited.patience = IDLE_SECONDS


def samples_of(chunk: AudioChunk) -> Float32Array:
    """Mono samples at the chunk's own rate, float32 [samples] in [-1, 1].

    Raises:
        RequestError: they are of a kind that nobody sends.
    """
    if chunk.width not in SAMPLE_TYPES or not 1 <= chunk.channels <= 8 or not 1000 <= chunk.rate <= 384_000:
        raise RequestError(
            f"the sound has {chunk.channels} channels, {chunk.width} bytes a sample and {chunk.rate} samples a second: "
            "expected 1 to 8, 1, 2 or 4, and 1000 to 384000."
        )
    kind, silence, loudest = SAMPLE_TYPES[chunk.width]
    frame = chunk.width * chunk.channels
    whole = len(chunk.audio) - len(chunk.audio) % frame
    values = np.frombuffer(chunk.audio[:whole], kind).reshape(-1, chunk.channels).astype(np.float32)
    mono: Float32Array = ((values - np.float32(silence)) / np.float32(loudest)).mean(axis=1, dtype=np.float32)
    return mono


def _sentence(error: Exception) -> str:
    if isinstance(error, BusyError):
        return BUSY
    if isinstance(error, TimeoutError):
        return TOO_SLOW
    if isinstance(error, MemoryError):
        return f"memory ran out: {FREE_MEMORY}."
    if isinstance(error, OSError):
        return f"a file cannot be read or written ({error.strerror}): look at the disk."
    return " ".join(str(error).split())
