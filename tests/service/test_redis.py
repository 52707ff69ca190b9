"""The link to Redis against a real one: slow, gone, full, restarted, locked; a call never takes more than its bound."""

import asyncio
import logging
import time

import pytest
from redis_support import PASSWORD, running_redis

from service.redis_link import RedisLink
from service.settings import load_settings

TIMEOUT = 0.2
PATIENCE = 20.0


def with_link(url, scenario, **options):
    """Run ``scenario(link)`` with a link that has found Redis, if it is there."""

    async def main():
        link = RedisLink(url, **{"timeout_seconds": TIMEOUT, "retry_seconds": 0.05, **options})
        link.start()
        try:
            return await asyncio.wait_for(scenario(link), 60)
        finally:
            await link.close()

    return asyncio.run(main())


async def until(condition):
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


async def timed(link, use):
    started = time.monotonic()
    return await link.call(use), time.monotonic() - started


def get(client):
    return client.get("a")


def test_without_a_redis_nothing_is_asked():
    async def scenario(link):
        assert (link.status, link.available) == ("off", False)
        assert await link.call(get) is None
        assert link.calls == 0

    with_link(None, scenario)


def test_it_sets_and_gets_bytes(redis_server):
    async def scenario(link):
        await until(lambda: link.available)
        assert link.status == "ok"
        await link.call(lambda client: client.set("a", b"\x00\xff"))
        assert await link.call(get) == b"\x00\xff"
        assert (link.calls, link.failures, link.errors) == (2, 0, 0)

    with_link(redis_server.url, scenario)


def test_a_slow_redis_costs_its_timeout_a_few_times_and_then_nothing(redis_server):
    async def scenario(link):
        await until(lambda: link.available)
        with redis_server.held():
            for _ in range(3):
                answer, seconds = await timed(link, get)
                assert answer is None
                assert seconds < TIMEOUT + 2
            assert link.status == "unavailable"
            before = link.calls
            started = time.monotonic()
            for _ in range(200):
                assert await link.call(get) is None
            assert time.monotonic() - started < 200 * TIMEOUT / 4  # nobody waits for it
            assert link.calls == before
            assert link.skipped == 200
        await until(lambda: link.available)
        await link.call(lambda client: client.set("a", b"1"))
        assert await link.call(get) == b"1"

    with_link(redis_server.url, scenario)


def test_an_answer_that_comes_too_late_is_given_to_nobody(redis_server):
    async def scenario(link):
        await until(lambda: link.available)
        for number in range(20):
            await link.call(lambda client, n=number: client.set(f"key {n}", f"value {n}"))
        with redis_server.held():
            late = await asyncio.gather(*(link.call(lambda client: client.get("key 0")) for _ in range(10)))
            assert late == [None] * 10
        await until(lambda: link.available)
        for number in range(20):
            assert await link.call(lambda client, n=number: client.get(f"key {n}")) == f"value {number}".encode()

    with_link(redis_server.url, scenario)


def test_a_caller_who_leaves_spoils_no_connection(redis_server):
    async def scenario(link):
        await until(lambda: link.available)
        for number in range(20):
            await link.call(lambda client, n=number: client.set(f"key {n}", f"value {n}"))
        for round_number in range(30):
            asked = asyncio.ensure_future(link.call(lambda client: client.get("key 0")))
            for _ in range(round_number % 6):
                await asyncio.sleep(0)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            number = round_number % 20
            assert await link.call(lambda client, n=number: client.get(f"key {n}")) == f"value {number}".encode()

    with_link(redis_server.url, scenario, timeout_seconds=5)


def test_a_redis_that_is_gone_and_comes_back(tmp_path):
    with running_redis(tmp_path) as server:

        async def scenario(link):
            await until(lambda: link.available)
            await link.call(lambda client: client.set("a", b"1"))
            server.kill()
            for _ in range(5):
                answer, seconds = await timed(link, get)
                assert answer is None
                assert seconds < TIMEOUT + 2
            assert link.status == "unavailable"
            await asyncio.to_thread(server.start)
            await until(lambda: link.available)
            assert await link.call(get) is None  # it forgot
            assert link.status == "ok"

        with_link(server.url, scenario)


def test_a_redis_that_was_restarted_between_two_calls_is_used_on(tmp_path):
    with running_redis(tmp_path) as server:

        async def scenario(link):
            await until(lambda: link.available)
            await asyncio.gather(*(link.call(get) for _ in range(10)))  # several connections, all dead soon
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)

            async def set_once():
                return await link.call(lambda client: client.set("a", b"2"))

            async with asyncio.timeout(PATIENCE):
                while not await set_once():
                    await asyncio.sleep(0.01)
            assert await link.call(get) == b"2"

        with_link(server.url, scenario)


def test_a_full_redis_refuses_writes_and_answers_reads(tmp_path):
    with running_redis(tmp_path, "--maxmemory", "1200kb", "--maxmemory-policy", "noeviction") as server:

        async def scenario(link):
            await until(lambda: link.available)
            for number in range(100):
                await link.call(lambda client, n=number: client.set(f"fill {n}", bytes(50_000)))
            assert link.errors > 0
            assert link.status == "ok"
            assert await link.call(lambda client: client.get("fill 0")) == bytes(50_000)

        with_link(server.url, scenario, timeout_seconds=5)


@pytest.mark.parametrize("way", ["nobody listens", "wrong password", "no such host"])
def test_a_redis_that_never_answers_is_unavailable_and_no_secret_is_told(redis_server, caplog, way):
    caplog.set_level(logging.DEBUG)
    url = {
        "nobody listens": f"redis://:{PASSWORD}@127.0.0.1:1/0",
        "wrong password": f"redis://:not-{PASSWORD}@127.0.0.1:{redis_server.port}/0",
        "no such host": f"redis://:{PASSWORD}@no-such-host.invalid:6379/0",
    }[way]

    async def scenario(link):
        await until(lambda: "continuing without it" in caplog.text)
        assert link.status == "unavailable"
        answer, seconds = await timed(link, get)
        assert answer is None
        assert seconds < TIMEOUT

    with_link(url, scenario)
    assert PASSWORD not in caplog.text
    assert url.split("@")[1].split("/")[0] in caplog.text  # but where it looked


def test_many_callers_at_once_share_the_connections(redis_server):
    async def scenario(link):
        await until(lambda: link.available)
        answers = await asyncio.gather(*(link.call(lambda client: client.ping()) for _ in range(500)))
        assert answers == [True] * 500
        assert link.failures == 0

    with_link(redis_server.url, scenario, timeout_seconds=30)


@pytest.mark.parametrize("url", ["http://:pw-secret@x", "redis://:pw-secret@x:port/0", "redis://u:pw-secret/x@h:6379"])
def test_a_url_that_cannot_be_read_is_not_quoted(url):
    with pytest.raises(ValueError, match="EMCL_REDIS_URL") as refusal:
        load_settings({"redis_url": url})
    assert "secret" not in str(refusal.value)
    assert "secret" not in str(refusal.value.__cause__)


def test_settings_do_not_show_the_password():
    settings = load_settings({"redis_url": f"redis://:{PASSWORD}@h:1/0"})
    assert PASSWORD not in repr(settings)
    assert PASSWORD not in str(settings)
