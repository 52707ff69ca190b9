"""The compute queue: urgent calls overtake, equal ones are shared, all compute in one thread that was prepared."""

import asyncio
import threading
import time

import pytest

from service.search.compute_queue import ComputeQueue
from service.settings import load_settings

PATIENCE = 30


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


def test_a_thread_that_cannot_be_prepared_says_so_when_it_starts():
    def fail():
        raise RuntimeError("no such device")

    async def scenario():
        queues = ComputeQueue(lambda items: items, load_settings(), fail)
        with pytest.raises(RuntimeError, match="no such device"):
            queues.start()
        await queues.close()

    run(scenario)


def test_all_queues_compute_in_the_thread_that_was_prepared():
    async def scenario():
        prepared = []
        queues = ComputeQueue(
            lambda items: [threading.get_ident()] * len(items),
            load_settings(),
            lambda: prepared.append(threading.get_ident()),
        )
        queues.start()
        try:
            used = {await queues.searches.submit(1), await queues.calls.submit(threading.get_ident)}
            return prepared, used | {await queues.once(threading.get_ident)}
        finally:
            await queues.close()

    prepared, used = run(scenario)
    assert used == set(prepared) != {threading.get_ident()}


def test_an_urgent_call_waits_for_no_queue():
    settings = load_settings({"max_batch": 1, "max_wait_ms": 0})
    gate, order = threading.Event(), []

    def search(items):
        assert gate.wait(20)
        order.extend(items)
        return items

    async def main():
        compute_queue = ComputeQueue(search, settings, lambda: None)
        compute_queue.start()
        searches = [asyncio.ensure_future(compute_queue.searches.submit(number)) for number in range(50)]
        calls = [
            asyncio.ensure_future(compute_queue.calls.submit(lambda n=number: order.append(f"call {n}")))
            for number in range(20)
        ]
        while compute_queue.searches.queue_depth > 49:
            await asyncio.sleep(0.002)
        urgent = asyncio.ensure_future(compute_queue.urgent.submit(lambda: order.append("urgent")))
        await asyncio.sleep(0.05)
        gate.set()
        await asyncio.gather(urgent, *searches, *calls)
        await compute_queue.close()

    asyncio.run(asyncio.wait_for(main(), 30))
    assert order.index("urgent") <= 4  # behind what the thread had been handed, ahead of what was queued
    assert len(order) == 71


def test_many_who_ask_for_the_same_urgent_call_share_it():
    calls = []

    async def main():
        compute_queue = ComputeQueue(lambda items: items, load_settings(), lambda: None)
        compute_queue.start()

        def probe():
            calls.append(1)
            time.sleep(0.05)
            return "ready"

        asked = [asyncio.ensure_future(compute_queue.once(probe)) for _ in range(100)]
        await asyncio.sleep(0)
        asked[0].cancel()  # who leaves takes nothing from the others
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert answers[1:] == ["ready"] * 99
        assert await compute_queue.once(probe) == "ready"

        def fail():
            raise ValueError("broken")

        with pytest.raises(ValueError, match="broken"):
            await compute_queue.once(fail)
        assert await compute_queue.once(probe) == "ready"
        await compute_queue.close()

    asyncio.run(asyncio.wait_for(main(), 30))
    assert len(calls) == 3
