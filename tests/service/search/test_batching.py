"""The dynamic batcher: what gathers, what is refused, what is dropped, and who hears of an error."""

import asyncio
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.errors import Overloaded
from service.search.batching import Batcher


class Recorder:
    """Squares numbers; remembers its batches, can be held up, and refuses negative numbers."""

    def __init__(self):
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, items):
        self.batches.append(list(items))
        assert self.gate.wait(10)
        if any(item < 0 for item in items):
            raise ValueError(f"negative: {items}")
        return [item**2 for item in items]


def run_with_batcher(scenario, **changes):
    """Run ``scenario(batcher, recorder)`` in a loop with one compute thread."""
    options = {"max_batch": 4, "max_wait_seconds": 0.05, "max_queue": 8, "name": "test", **changes}
    recorder = Recorder()

    async def main():
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(recorder, executor=executor, **options)
            batcher.start()
            try:
                return await asyncio.wait_for(scenario(batcher, recorder), 20)
            finally:
                recorder.gate.set()
                await batcher.close()

    return asyncio.run(main())


async def until(condition):
    """Let the loop run until ``condition()`` holds."""
    while not condition():
        await asyncio.sleep(0.002)


async def held_up(batcher, recorder):
    """Let the batcher compute 1 until the recorder's gate is opened; what will be its answer."""
    recorder.gate.clear()
    first = asyncio.ensure_future(batcher.submit(1))
    await until(lambda: recorder.batches)
    return first


def test_concurrent_items_share_a_batch_and_get_their_own_results():
    async def scenario(batcher, recorder):
        results = await asyncio.gather(*(batcher.submit(number) for number in range(4)))
        assert results == [0, 1, 4, 9]
        assert recorder.batches == [[0, 1, 2, 3]]

    run_with_batcher(scenario, max_wait_seconds=5.0)  # a full batch does not wait


def test_who_is_alone_waits_for_nobody():
    async def scenario(batcher, recorder):
        for number in range(3):  # would wait for minutes
            assert await batcher.submit(number) == number**2
        assert recorder.batches == [[0], [1], [2]]

    run_with_batcher(scenario, max_wait_seconds=300)


def test_after_a_shared_batch_an_item_waits_for_as_many_as_came_then():
    async def scenario(batcher, recorder):
        assert await asyncio.gather(*(batcher.submit(number) for number in range(3))) == [0, 1, 4]
        first = [asyncio.ensure_future(batcher.submit(number)) for number in (3, 4)]
        await asyncio.sleep(0.05)
        assert recorder.batches == [[0, 1, 2]]  # they wait, for they were three before
        assert await batcher.submit(5) == 25
        assert await asyncio.gather(*first) == [9, 16]
        assert recorder.batches == [[0, 1, 2], [3, 4, 5]]

    run_with_batcher(scenario, max_wait_seconds=300)


def test_after_a_shared_batch_a_lone_item_waits_no_longer_than_the_limit():
    async def scenario(batcher, recorder):
        await asyncio.gather(*(batcher.submit(number) for number in range(4)))
        started = time.perf_counter()
        assert await batcher.submit(3) == 9
        assert time.perf_counter() - started > 0.04
        assert await batcher.submit(5) == 25
        assert recorder.batches == [[0, 1, 2, 3], [3], [5]]

    run_with_batcher(scenario)


def test_what_arrives_during_a_batch_forms_the_next():
    async def scenario(batcher, recorder):
        first = await held_up(batcher, recorder)
        rest = [asyncio.ensure_future(batcher.submit(number)) for number in range(2, 8)]
        await until(lambda: batcher.queue_depth == 6)
        recorder.gate.set()
        assert await asyncio.gather(first, *rest) == [number**2 for number in range(1, 8)]
        assert recorder.batches == [[1], [2, 3, 4, 5], [6, 7]]

    run_with_batcher(scenario)


def test_a_full_queue_refuses_at_once_and_says_when_to_return():
    async def scenario(batcher, recorder):
        first = await held_up(batcher, recorder)
        waiting = [asyncio.ensure_future(batcher.submit(number)) for number in range(8)]
        await until(lambda: batcher.queue_depth == 8)
        with pytest.raises(Overloaded) as refusal:
            batcher.submit(99).send(None)  # its first step: it awaits nothing before it is refused
        assert int(refusal.value.headers["Retry-After"]) >= 1
        recorder.gate.set()
        await asyncio.gather(first, *waiting)
        assert 99 not in itertools.chain(*recorder.batches)

    run_with_batcher(scenario)


def test_a_cancelled_item_frees_its_place_and_is_never_computed():
    async def scenario(batcher, recorder):
        first = await held_up(batcher, recorder)
        dropped, kept = (asyncio.ensure_future(batcher.submit(number)) for number in (50, 5))
        await until(lambda: batcher.queue_depth == 2)
        dropped.cancel()
        await until(lambda: batcher.queue_depth == 1)
        recorder.gate.set()
        assert await asyncio.gather(first, kept) == [1, 25]
        assert recorder.batches == [[1], [5]]

    run_with_batcher(scenario)


def test_an_item_cancelled_while_it_is_computed_harms_nobody():
    async def scenario(batcher, recorder):
        recorder.gate.clear()
        gone, stays = (asyncio.ensure_future(batcher.submit(number)) for number in (2, 3))
        await until(lambda: recorder.batches)
        gone.cancel()
        recorder.gate.set()
        assert await stays == 9
        assert await batcher.submit(4) == 16

    run_with_batcher(scenario)


def test_an_error_reaches_only_the_item_that_caused_it():
    async def scenario(batcher, recorder):
        results = await asyncio.gather(*(batcher.submit(number) for number in (1, -2, 3)), return_exceptions=True)
        assert results[0] == 1
        assert results[2] == 9
        assert isinstance(results[1], ValueError)
        assert await batcher.submit(6) == 36

    run_with_batcher(scenario)


def test_several_items_are_taken_all_or_none():
    async def scenario(batcher, recorder):
        assert await batcher.submit_all([1, 2, 3, 4, 5, 6]) == [1, 4, 9, 16, 25, 36]
        with pytest.raises(Overloaded):
            await batcher.submit_all(list(range(9)))
        with pytest.raises(ValueError, match="negative"):
            await batcher.submit_all([1, -1, 2])
        assert batcher.queue_depth == 0

    run_with_batcher(scenario)


def test_closing_tells_those_who_wait():
    async def scenario(batcher, recorder):
        computing = await held_up(batcher, recorder)
        waiting = asyncio.ensure_future(batcher.submit(2))
        await until(lambda: batcher.queue_depth == 1)
        await batcher.close()
        recorder.gate.set()
        outcomes = await asyncio.gather(computing, waiting, return_exceptions=True)
        assert all(isinstance(outcome, Overloaded) for outcome in outcomes)

    run_with_batcher(scenario)


def test_many_concurrent_clients_all_get_their_own_answer():
    async def scenario(batcher, recorder):
        async def client(start):
            return [await batcher.submit(number) for number in range(start, start + 20)]

        answers = await asyncio.gather(*(client(start) for start in range(0, 640, 20)))
        assert list(itertools.chain(*answers)) == [number**2 for number in range(640)]
        assert max(map(len, recorder.batches)) <= 16
        assert len(recorder.batches) < 640 / 4  # they really were gathered

    run_with_batcher(scenario, max_batch=16, max_queue=64, max_wait_seconds=0.002)


# Deadlines and counters.


def test_an_item_that_waited_too_long_is_told_at_once_and_never_computed():
    async def scenario(batcher, recorder):
        first = await held_up(batcher, recorder)
        late = [asyncio.ensure_future(batcher.submit(number)) for number in (50, 51)]
        outcomes = await asyncio.gather(*late, return_exceptions=True)  # while the first is still being computed
        assert not first.done()
        assert all(isinstance(outcome, Overloaded) for outcome in outcomes)
        assert "not computed" in outcomes[0].detail
        assert int(outcomes[0].headers["Retry-After"]) >= 1
        assert batcher.queue_depth == 0
        recorder.gate.set()
        assert await first == 1  # what was begun in time is not thrown away
        assert await batcher.submit(6) == 36
        assert recorder.batches == [[1], [6]]
        assert (batcher.expired, batcher.batches, batcher.items) == (2, 2, 2)

    run_with_batcher(scenario, timeout_seconds=0.2, max_wait_seconds=0)


def test_each_item_has_its_own_deadline():
    async def scenario(batcher, recorder):
        first = await held_up(batcher, recorder)
        early = asyncio.ensure_future(batcher.submit(50))
        await asyncio.sleep(2.0)  # what the machine may stand still for without the later one being late too
        later = asyncio.ensure_future(batcher.submit(7))
        await asyncio.gather(early, return_exceptions=True)
        recorder.gate.set()
        assert isinstance(early.exception(), Overloaded)
        assert await asyncio.gather(first, later) == [1, 49]
        assert batcher.expired == 1

    run_with_batcher(scenario, timeout_seconds=3.0, max_wait_seconds=0)


def test_the_counters_say_what_became_of_items():
    async def scenario(batcher, recorder):
        first = await held_up(batcher, recorder)
        waiting = [asyncio.ensure_future(batcher.submit(number)) for number in range(8)]
        await until(lambda: batcher.queue_depth == 8)
        for _ in range(3):
            with pytest.raises(Overloaded):
                await batcher.submit(99)
        waiting[0].cancel()
        await until(lambda: batcher.queue_depth == 7)
        recorder.gate.set()
        await asyncio.gather(first, *waiting[1:])
        assert (batcher.rejected, batcher.cancelled, batcher.expired) == (3, 1, 0)
        assert (batcher.items, batcher.batches) == (8, 3)

    run_with_batcher(scenario)


def test_a_batcher_that_is_closed_leaves_no_timer():
    async def scenario(batcher, recorder):
        assert await batcher.submit(2) == 4
        await batcher.close()
        assert batcher.expiry is None or batcher.expiry.cancelled()

    run_with_batcher(scenario, timeout_seconds=100)
