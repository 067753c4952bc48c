"""One model for many requests: they wait in a line of bounded length, and one is answered at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")

BUSY = "too many requests wait: try again later."
TOO_SLOW = "the answer took longer than the server allows."
"""What a client is told of a `BusyError` and of a TimeoutError."""


class BusyError(Exception):
    """As many requests wait as may."""


@dataclass(frozen=True, slots=True)
class _Failure:
    error: BaseException


_END = object()


class ModelQueue:
    """Runs work on a model in a thread of its own, which nothing else uses."""

    def __init__(self, longest: int, time_limit: float) -> None:
        """Args: longest: requests that may wait or be answered; time_limit: seconds for one, waiting included."""
        self._longest = longest
        self._time_limit = time_limit
        self._admitted = 0
        self._thread = ThreadPoolExecutor(1, "model")
        self._closing = threading.Event()

    @property
    def admitted(self) -> int:
        """Requests that wait or are being answered."""
        return self._admitted

    def submit(self, make: Callable[[], Iterator[Item]], clean_up: Callable[[], object] | None = None) -> Job[Item]:
        """Take work on; its items can then be iterated over.

        Args:
            make: begins the work, in the model's thread.
            clean_up: called when it has ended, also where it was given up before it began.

        Raises:
            BusyError: too many wait already.
        """
        self._admit()

        def end() -> None:
            self._release()
            if clean_up is not None:
                clean_up()

        return Job(self._thread, make, self._time_limit, self._closing, end)

    def open(self) -> Place:
        """A place in the line for work that comes piece by piece, between which others are answered.

        Raises:
            BusyError: too many wait already.
        """
        self._admit()
        return Place(self._thread, self._time_limit, self._closing, self._release)

    def close(self) -> None:
        """End the work that is being done at its next item; drop what waits."""
        self._closing.set()
        # Not waited for: a signal that ends the service must not wait for an answer, minutes on a small machine.
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _admit(self) -> None:
        if self._admitted >= self._longest:
            raise BusyError
        self._admitted += 1

    def _release(self) -> None:
        self._admitted -= 1


class Place:
    """In the line of those who are answered, until it is closed."""

    def __init__(
        self, thread: ThreadPoolExecutor, time_limit: float, closing: threading.Event, done: Callable[[], None]
    ) -> None:
        self._thread, self._closing, self._done = thread, closing, done
        self._deadline = asyncio.get_running_loop().time() + time_limit
        self._closed = False

    async def wait(self, event: asyncio.Event) -> None:
        """Wait for something that is to be done.

        Raises:
            TimeoutError: nothing came for as long as all of it may take.
        """
        # Not wait_for, which loses a cancellation that comes together with what it waits for before Python 3.12:
        # https://github.com/python/cpython/issues/86296
        async with asyncio.timeout_at(self._deadline):
            await event.wait()

    async def run(self, work: Callable[[], Item]) -> Item:
        """Wait for a piece of work in the model's thread.

        Raises:
            TimeoutError: all of it together takes longer than is allowed.
            BusyError: the line is closed.
        """
        if self._closing.is_set():
            raise BusyError
        future = asyncio.wrap_future(self._thread.submit(work))
        async with asyncio.timeout_at(self._deadline):
            return await future

    def run_later(self, work: Callable[[], object]) -> None:
        """Do something in the model's thread when what is under way there has ended; nothing if the line is closed."""
        with suppress(RuntimeError):
            self._thread.submit(work)

    def close(self) -> None:
        """Leave the line."""
        if not self._closed:
            self._closed = True
            self._done()


class Job(Generic[Item]):
    """Work that was taken on. Iterate over it once, or close it."""

    def __init__(
        self,
        thread: ThreadPoolExecutor,
        make: Callable[[], Iterator[Item]],
        time_limit: float,
        closing: threading.Event,
        done: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[Any] = asyncio.Queue()
        self._cancelled = threading.Event()
        self._closing = closing
        self._deadline = self._loop.time() + time_limit
        self._done = done
        thread.submit(self._work, make).add_done_callback(self._give_up)

    def __aiter__(self) -> AsyncIterator[Item]:
        return self._iterate()

    async def all(self) -> list[Item]:
        """Wait for all items."""
        return [item async for item in self]

    def cancel(self) -> None:
        """Nobody waits any more: stop at the next item."""
        self._cancelled.set()

    async def _iterate(self) -> AsyncIterator[Item]:
        try:
            while True:
                async with asyncio.timeout_at(self._deadline):
                    item = await self._items.get()
                if item is _END:
                    return
                if isinstance(item, _Failure):
                    raise item.error
                yield item
        finally:
            self.cancel()

    def _work(self, make: Callable[[], Iterator[Item]]) -> None:
        try:
            if not self._cancelled.is_set():
                for item in make():
                    if self._cancelled.is_set() or self._closing.is_set():
                        return
                    self._call(self._items.put_nowait, item)
        except BaseException as error:  # whatever it is belongs to whoever waits for the answer
            self._call(self._items.put_nowait, _Failure(error))
        finally:
            # In this order: whoever has the whole answer and asks again at once finds the place free.
            self._call(self._done)
            self._call(self._items.put_nowait, _END)

    def _give_up(self, ended: Future[None]) -> None:
        """Where the line was closed before the work began."""
        if ended.cancelled():
            self._call(self._done)
            self._call(self._items.put_nowait, _Failure(BusyError()))

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        """In the thread of the event loop, unless that has ended."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)
