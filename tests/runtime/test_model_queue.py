from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from cabochon.model_queue import BusyError, ModelQueue


def test_work_is_done_in_the_order_in_which_it_came_one_at_a_time() -> None:
    running: list[str] = []

    def work(name: str) -> Iterator[str]:
        running.append(name)
        assert len(running) == 1
        yield f"{name}1"
        time.sleep(0.01)
        yield f"{name}2"
        running.remove(name)

    async def main() -> list[list[str]]:
        queue = ModelQueue(5, 10)
        jobs = [queue.submit(lambda name=name: work(name)) for name in "abc"]  # type: ignore[misc]
        return await asyncio.gather(*(job.all() for job in jobs))

    assert asyncio.run(main()) == [["a1", "a2"], ["b1", "b2"], ["c1", "c2"]]


def test_more_than_may_wait_are_refused_until_there_is_room() -> None:
    async def main() -> None:
        queue, go = ModelQueue(2, 10), threading.Event()

        def wait() -> Iterator[int]:
            go.wait(5)
            yield 1

        jobs = [queue.submit(wait) for _ in range(2)]
        with pytest.raises(BusyError):
            queue.submit(wait)
        go.set()
        assert [await job.all() for job in jobs] == [[1], [1]]
        while queue.admitted:
            await asyncio.sleep(0.01)
        assert await queue.submit(lambda: iter([2])).all() == [2]

    asyncio.run(main())


def test_an_error_reaches_whoever_waits_and_nobody_else() -> None:
    def fail() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    async def main() -> None:
        queue = ModelQueue(5, 10)
        failing, fine = queue.submit(fail), queue.submit(lambda: iter([2]))
        with pytest.raises(ValueError, match="broken"):
            await failing.all()
        assert await fine.all() == [2]

    asyncio.run(main())


def test_closing_ends_endless_work() -> None:
    async def main() -> None:
        queue = ModelQueue(5, 10)
        job = queue.submit(itertools.count)
        assert await anext(aiter(job)) == 0
        started = time.monotonic()
        await asyncio.to_thread(queue.close)
        assert time.monotonic() - started < 5

    asyncio.run(main())


def test_others_are_answered_between_pieces_of_work_and_each_place_counts() -> None:
    async def main() -> None:
        queue = ModelQueue(2, 10)
        place = queue.open()
        assert await place.run(lambda: 1) == 1
        assert await queue.submit(lambda: iter([2])).all() == [2]
        other = queue.open()
        with pytest.raises(BusyError):
            queue.open()
        other.close()
        other.close()
        assert queue.admitted == 1
        with pytest.raises(ValueError, match="broken"):
            await place.run(lambda: int("broken"))
        assert await place.run(lambda: 3) == 3
        queue.close()
        with pytest.raises(BusyError):
            await place.run(lambda: 4)

    asyncio.run(main())


def test_a_place_is_kept_no_longer_than_is_allowed() -> None:
    async def main() -> None:
        queue = ModelQueue(2, 0.05)
        place = queue.open()
        assert await place.run(lambda: 1) == 1
        with pytest.raises(TimeoutError):
            await place.run(lambda: time.sleep(0.2))
        with pytest.raises(TimeoutError):
            await place.run(lambda: 1)

    asyncio.run(main())


def test_what_work_left_is_cleaned_up_also_where_it_was_given_up_before_it_began() -> None:
    cleaned: list[str] = []

    async def main() -> None:
        queue, begun, go = ModelQueue(5, 10), threading.Event(), threading.Event()

        def wait() -> Iterator[int]:
            begun.set()
            go.wait(5)
            yield 1

        first = queue.submit(wait, lambda: cleaned.append("first"))
        given_up = queue.submit(wait, lambda: cleaned.append("given up"))
        given_up.cancel()
        go.set()
        assert await first.all() == [1]
        go.clear()
        begun.clear()
        working = queue.submit(wait, lambda: cleaned.append("closed while it works"))
        waiting = queue.submit(wait, lambda: cleaned.append("closed while it waits"))
        await asyncio.to_thread(begun.wait)
        queue.close()
        with pytest.raises(BusyError):
            await waiting.all()
        go.set()
        assert await working.all() == []
        while len(cleaned) < 4 or queue.admitted:
            await asyncio.sleep(0.01)

    asyncio.run(main())
    assert sorted(cleaned) == ["closed while it waits", "closed while it works", "first", "given up"]


def test_closing_does_not_wait_for_the_work_that_is_being_done() -> None:
    async def main() -> None:
        queue, go = ModelQueue(5, 10), threading.Event()

        def wait() -> Iterator[int]:
            go.wait(20)
            yield 1

        queue.submit(wait)
        began = time.monotonic()
        queue.close()
        assert time.monotonic() - began < 5
        go.set()

    asyncio.run(main())
