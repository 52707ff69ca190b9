"""Requests as bytes on a connection: heads that are too long or too slow, several at once, bodies that nobody reads."""

from __future__ import annotations

import asyncio
import json
import socket
import time

import psutil
import pytest
from starlette.requests import ClientDisconnect, Request
from wire_support import read_all

from service.http.disconnect import unless_gone

MAX_HEAD_BYTES = 64 * 1024  # uvicorn's
PATIENCE = 30
MEBIBYTE = 1024**2
GET = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
SEARCH = b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture(scope="module")
def server(start_server, clip_store, tiny_checkpoint, tmp_path_factory):
    jobs = tmp_path_factory.mktemp("jobs")
    store = ("--store", clip_store / "store", "--model", tiny_checkpoint)
    return start_server(*store, "--jobs-folder", jobs, "--embedded-worker", "off", "--request-timeout-seconds", "2")


@pytest.fixture
def connection(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as made:
        yield made


def read_answer(connection):
    """Status, headers and body of the next answer; one byte after the other, so that nothing of the next is taken."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = connection.recv(1)
        assert piece, head
        head += piece
    first, *lines = head.decode().strip().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    body = b""
    while len(body) < int(headers["content-length"]):
        body += connection.recv(int(headers["content-length"]) - len(body))
    return int(first.split(" ")[1]), headers, body


def assert_refused(said):
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in head.lower()
    assert json.loads(body)["next_step"]


def test_a_head_may_be_long_but_not_too_long(connection, server):
    long = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * (MAX_HEAD_BYTES - 1000) + b"\r\n\r\n"
    connection.sendall(long)
    assert read_answer(connection)[0] == 200
    connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 8 * MAX_HEAD_BYTES)
    said = read_all(connection)
    assert not said or said.startswith(b"HTTP/1.1 400 ")


def test_a_head_that_never_ends_is_cut_off(connection):
    connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    try:
        for number in range(4 * MAX_HEAD_BYTES // 100):
            connection.sendall(b"X-%06d: %s\r\n" % (number, b"x" * 80))
    except (ConnectionResetError, BrokenPipeError):
        return  # it did not even listen to the end
    said = read_all(connection)
    assert not said or said.startswith(b"HTTP/1.1 400 ")


def test_several_requests_at_once_are_answered_in_order(connection):
    first, second = b'{"text": "a red circle"}', b'{"text": 5}'
    connection.sendall(SEARCH % len(first) + first + SEARCH % len(second) + second + GET)
    answers = [read_answer(connection) for _ in range(3)]
    assert [status for status, *_ in answers] == [200, 422, 200]
    assert json.loads(answers[0][2])["hits"]


def test_very_many_requests_at_once_are_answered_too(connection):
    connection.sendall(GET * 200)
    assert {read_answer(connection)[0] for _ in range(200)} == {200}


@pytest.mark.parametrize("packets", [1, 2])
def test_the_body_of_a_request_to_upgrade_is_no_request(connection, packets):
    head = SEARCH.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n") % len(GET)
    if packets == 1:
        connection.sendall(head + GET)
    else:
        connection.sendall(head)
        time.sleep(0.2)
        connection.sendall(GET)
    assert read_answer(connection)[0] == 422
    connection.sendall(GET)
    assert read_answer(connection)[0] == 200


def test_nonsense_behind_a_request_does_not_take_its_answer(connection):
    body = b'{"text": "a red circle"}'
    connection.sendall(SEARCH % len(body) + body + b"\x00\x01 nonsense\r\n\r\n")
    assert read_answer(connection)[0] == 200
    assert_refused(read_all(connection))


def test_a_head_that_is_begun_while_another_request_is_answered_does_not_end_that_one(connection, server):
    body = b'{"text": "a red circle"}'
    connection.sendall(SEARCH % len(body) + body + b"GET /heal")
    assert read_answer(connection)[0] == 200
    started = time.monotonic()
    assert read_all(connection) == b""  # let go, for the rest of the second never came
    assert time.monotonic() - started < PATIENCE / 2


def test_empty_lines_do_not_keep_a_connection(connection):
    connection.sendall(GET)
    assert read_answer(connection)[0] == 200
    started = time.monotonic()
    try:
        while time.monotonic() - started < PATIENCE:
            connection.sendall(b"\r\n")
            time.sleep(0.1)
    except (ConnectionResetError, BrokenPipeError):
        pass
    assert time.monotonic() - started < PATIENCE / 2


CHUNKED = b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"


@pytest.mark.parametrize(
    ("head", "piece"),
    [(SEARCH % (1 << 40), b" " * MEBIBYTE), (CHUNKED, b"aa:bb\r\n" * (MEBIBYTE // 7))],
    ids=["body", "trailers"],
)
def test_what_nobody_reads_stays_with_its_sender(server, head, piece):
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    senders = [socket.create_connection(("127.0.0.1", server.port), timeout=2) for _ in range(4)]
    try:
        for sender in senders:
            sender.sendall(head)
            assert how_often_taken(sender, piece) < 64
            assert process.memory_info().rss - before < 64 * MEBIBYTE
    finally:
        for sender in senders:
            sender.close()


def how_often_taken(sender, piece):
    for number in range(256):
        try:
            sender.sendall(piece)
        except (TimeoutError, ConnectionResetError, BrokenPipeError):
            return number
    return 256


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
