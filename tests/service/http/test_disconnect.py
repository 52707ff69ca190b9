"""Work for a request ends when its client disconnects, and only then."""

import asyncio

import pytest
from starlette.requests import ClientDisconnect, Request

from service.http.disconnect import unless_gone

PATIENCE = 30


def request_of(gone):
    """A request whose client leaves when ``gone`` is set."""

    async def receive():
        await gone.wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http", "headers": []}, receive)


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


@pytest.mark.parametrize("seconds", [0.0, 0.1])
def test_who_stays_gets_the_result_however_long_it_takes(seconds):
    async def work():
        await asyncio.sleep(seconds)
        return 7

    async def scenario():
        before = asyncio.all_tasks()
        result = await unless_gone(request_of(asyncio.Event()), work())
        await asyncio.sleep(0)  # what was watching has ended by now
        return result, asyncio.all_tasks() - before

    assert run(scenario) == (7, set())


def test_an_error_of_the_work_is_the_callers():
    async def work():
        await asyncio.sleep(0.05)
        raise KeyError("x")

    with pytest.raises(KeyError):
        run(lambda: unless_gone(request_of(asyncio.Event()), work()))


def test_work_for_a_client_that_left_is_cancelled():
    ended = []

    async def work():
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            ended.append(True)

    async def scenario():
        gone = asyncio.Event()
        asyncio.get_running_loop().call_later(0.1, gone.set)
        with pytest.raises(ClientDisconnect):
            await unless_gone(request_of(gone), work())
        assert asyncio.current_task().cancelling() == 0
        await asyncio.sleep(0.01)  # the task itself goes on

    run(scenario)
    assert ended == [True]


@pytest.mark.parametrize("leaves", [False, True])
def test_who_cancels_the_task_itself_is_obeyed(leaves):
    async def scenario():
        gone = asyncio.Event()
        task = asyncio.ensure_future(unless_gone(request_of(gone), asyncio.sleep(PATIENCE)))
        await asyncio.sleep(0.05)
        if leaves:
            gone.set()
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, ClientDisconnect)) as caught:
            await task
        return caught.type

    assert run(scenario) is asyncio.CancelledError or leaves
