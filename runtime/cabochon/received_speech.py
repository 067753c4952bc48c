"""Speech that is heard while a client sends it, on a model that others use as well."""

from __future__ import annotations

import asyncio
import gc
from functools import partial

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.freed_memory import return_freed_memory
from cabochon.live_speech import LiveSpeech
from cabochon.long_speech import SpokenPart, start_segmenter
from cabochon.model_queue import ModelQueue
from cabochon.speech_task import SpeechTask


class ReceivedSpeech:
    """What one client says: push samples as they come, then finish, or else cancel."""

    def __init__(self, queue: ModelQueue, task: SpeechTask) -> None:
        """Take a place in the line.

        Raises:
            BusyError: too many wait already.
            RequestError: the model does not hear.
            MissingDependencyError: the voice detector is not installed.
        """
        self.task = task
        audio = task.model.audio_model
        self._live = LiveSpeech(start_segmenter(audio), task.question(), audio.sample_rate)
        self._place = queue.open()
        self._waiting: list[Float32Array] = []
        self._changed = asyncio.Event()
        self._ended = False
        self._parts: list[SpokenPart] = []
        self._hearing = asyncio.create_task(self._hear())
        # Here, because a task that is cancelled before its first step never comes to a `finally` of its own.
        self._hearing.add_done_callback(self._leave)

    def push(self, samples: Float32Array) -> None:
        """The next samples, float32 of any number; they wait while the model is busy."""
        self._waiting.append(samples)
        self._changed.set()

    async def finish(self) -> list[SpokenPart]:
        """All parts, when the last one is answered.

        Raises:
            CabochonError: it could not be answered.
            TimeoutError: it took longer than is allowed.
        """
        self._ended = True
        self._changed.set()
        await self._hearing
        return self._parts

    def cancel(self) -> None:
        """Nobody waits for an answer any more."""
        self._hearing.cancel()

    async def _hear(self) -> None:
        live = self._live
        while True:
            # Who says nothing more must not keep the place.
            await self._place.wait(self._changed)
            self._changed.clear()
            waiting, self._waiting, ended = self._waiting, [], self._ended
            if waiting:
                self._parts += await self._place.run(partial(live.push, np.concatenate(waiting)))
            if ended:
                self._parts += await self._place.run(live.finish)
                return

    def _leave(self, hearing: asyncio.Task[None]) -> None:
        self._place.close()
        if hearing.cancelled():
            _forget()
            self._place.run_later(_forget)  # what was under way
        else:
            hearing.exception()  # which nobody may ask for


def _forget() -> None:
    """The error that a cancelled task keeps refers to the task by its frames, and so to sounds and caches.

    Python looks for such circles by the number of objects, not by their size: hundreds of clients who went away would
    take a gigabyte.
    """
    gc.collect()
    return_freed_memory()
