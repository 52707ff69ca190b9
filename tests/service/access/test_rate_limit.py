"""Rates of keys: in one process, shared through Redis, and when Redis fails; 429 says when to come back."""

import asyncio
import contextlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
from service_support import bearer, make_keys, serving

from service.access import rate_limit
from service.access.rate_limit import Rate, RateLimiter, SharedTokenBuckets, TokenBuckets
from service.errors import RateLimited
from service.redis_link import RedisLink

SLOW = Rate(what="requests", per_second=0.01, burst=3)
TICKING = Rate(what="requests", per_second=0.5, burst=3)
FAST = Rate(what="uploads", per_second=1000.0, burst=3)


@pytest.mark.parametrize("kind", ["own", "shared"])
def test_a_bucket_gives_its_burst_and_then_its_rate(kind, tmp_path):
    now = [100.0]
    clock = lambda: now[0]  # noqa: E731
    buckets = TokenBuckets(clock) if kind == "own" else SharedTokenBuckets(tmp_path / "rates", clock)
    assert [buckets.take("a", TICKING) for _ in range(3)] == [0, 0, 0]
    assert buckets.take("a", TICKING) == pytest.approx(2.0)
    now[0] += 1.5
    assert buckets.take("a", TICKING) == pytest.approx(0.5)
    now[0] += 0.5
    assert buckets.take("a", TICKING) == 0
    assert buckets.take("b", TICKING) == 0  # another name has its own
    now[0] += 1e6
    assert [buckets.take("a", TICKING) > 0 for _ in range(4)] == [False, False, False, True]  # no more than the burst


def test_ever_more_names_do_not_grow_memory(monkeypatch):
    monkeypatch.setattr(rate_limit, "MAX_BUCKETS", 10)
    buckets = TokenBuckets()
    for number in range(100):
        buckets.take("busy", SLOW)
        buckets.take(f"client {number}", SLOW)
    assert len(buckets) == 10
    assert buckets.take("busy", SLOW) > 0  # who keeps asking is not forgotten


def is_refused(path):
    """Whether a process of its own is refused."""
    return SharedTokenBuckets(path).take("a", SLOW) > 0


def test_processes_that_map_the_same_file_share_its_buckets(tmp_path):
    buckets = SharedTokenBuckets(tmp_path / "rates")
    assert buckets.take("a", SLOW) == 0
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as processes:
        refused = list(processes.map(is_refused, [tmp_path / "rates"] * 6))
    assert sum(refused) == 4  # of a burst of three, two were left
    assert buckets.take("a", SLOW) > 0


def test_a_shared_table_that_is_full_forgets_what_was_used_longest_ago(tmp_path, monkeypatch):
    monkeypatch.setattr(rate_limit, "MAX_BUCKETS", 9)  # all names share the same eight places
    now = [0.0]

    def clock():
        now[0] += 0.001
        return now[0]

    buckets = SharedTokenBuckets(tmp_path / "rates", clock)
    for number in range(100):
        buckets.take("busy", SLOW)
        buckets.take(f"client {number}", SLOW)
    assert (tmp_path / "rates").stat().st_size == 9 * 32
    assert buckets.take("busy", SLOW) > 0
    assert buckets.take("client 1", SLOW) == 0


def limiter(link):
    return RateLimiter(link, requests=SLOW, uploads=FAST, limit_clients=False)


def with_two_processes(url, scenario, timeout_seconds=5.0):
    """Run ``scenario(one, other)`` with two limiters that share only Redis."""

    async def main():
        links = [RedisLink(url, timeout_seconds=timeout_seconds, retry_seconds=0.05) for _ in range(2)]
        for link in links:
            link.start()
        while url is not None and not all(link.available for link in links):
            await asyncio.sleep(0.01)
        try:
            return await scenario(*(limiter(link) for link in links), links)
        finally:
            for link in links:
                await link.close()

    return asyncio.run(main())


async def taken(one, name, rate, times):
    count = 0
    for _ in range(times):
        with contextlib.suppress(RateLimited):
            await one.take(name, rate)
            count += 1
    return count


def test_two_processes_share_one_bucket(redis_server):
    async def scenario(one, other, links):
        first = await taken(one, "shared", SLOW, 2)
        assert first + await taken(other, "shared", SLOW, 5) == 3
        assert await taken(one, "another", SLOW, 3) == 3
        assert (one.rejected, other.rejected) == (0, 4)
        assert all(link.errors == link.failures == 0 for link in links)
        together = await asyncio.gather(*(taken(each, "rush", SLOW, 10) for each in (one, other) for _ in range(5)))
        assert sum(together) == 3

    with_two_processes(redis_server.url, scenario)


def test_a_bucket_in_redis_fills_again_and_is_forgotten_when_full(redis_server):
    async def scenario(one, other, links):
        assert await taken(one, "refill", FAST, 3) == 3
        async with asyncio.timeout(10):
            while not await taken(other, "refill", FAST, 1):
                await asyncio.sleep(0.002)

    with_two_processes(redis_server.url, scenario)
    with redis_server.client() as client:
        keys = client.keys("emcl:rate:uploads:*")
        assert keys
        assert all(0 < client.pttl(key) <= 1003 for key in keys)


@pytest.mark.parametrize("fault", ["nonsense", "another type", "future", "script flush", "flush"])
def test_a_bucket_that_was_tampered_with_is_full_or_in_process(redis_server, fault):
    with redis_server.client() as client:
        client.flushall()

        async def scenario(one, other, links):
            assert await taken(one, "tampered", SLOW, 3) == 3
            (key,) = client.keys("emcl:rate:requests:*")
            if fault == "nonsense":
                client.hset(key, mapping={"tokens": "nan", "at": "yesterday"})
            elif fault == "another type":
                client.set(key, b"text")
            elif fault == "future":
                client.hset(key, mapping={"tokens": "0", "at": "9e12"})
            elif fault == "script flush":
                client.script_flush()
            else:
                client.flushall()
            count = await taken(one, "tampered", SLOW, 8)
            assert count == {"future": 0, "script flush": 0}.get(fault, 3)

        with_two_processes(redis_server.url, scenario)


def test_without_redis_each_process_still_limits(redis_server):
    async def scenario(one, other, links):
        assert await taken(one, "alone", SLOW, 5) == 3
        with redis_server.held():
            while links[0].available:
                await taken(one, "held", SLOW, 1)
            assert await taken(one, "new name", SLOW, 6) == 3
        async with asyncio.timeout(20):
            while not links[0].available:
                await asyncio.sleep(0.01)

    with_two_processes(redis_server.url, scenario, timeout_seconds=0.3)


# Over HTTP.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rates")


@pytest.fixture(scope="module")
def keys(folder):
    return make_keys(folder)


def test_each_key_has_its_own_rate(clip_store, tiny_encoder, folder, keys):
    options = {"require_keys": True, "rate_limit": 0.01, "rate_burst": 3}
    with serving(clip_store, tiny_encoder, folder, **options) as client:
        answers = [client.get("/v1/index", headers=bearer(keys[1]["search"])) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        problem = answers[-1].json()
        assert problem["type"] == "/docs#problem-rate-limited"
        assert "Retry-After" in problem["next_step"]
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 100
        assert client.get("/v1/index", headers=bearer(keys[1]["write"])).status_code == 200
        assert client.get("/health/ready").status_code == 200
        assert client.get("/").status_code == 200
        services = client.app.state.services
        assert services.gate.limits.rejected == 2


def test_uploads_have_a_rate_of_their_own(clip_store, tiny_encoder, folder, keys):
    options = {"require_keys": True, "rate_limit": 0, "upload_rate_per_minute": 1, "upload_burst": 2}
    with serving(clip_store, tiny_encoder, folder, **options) as client:
        headers = bearer(keys[1]["search"])
        files = {"file": ("x.mp4", b"no video")}
        answers = [client.post("/v1/search/video", files=files, headers=headers).status_code for _ in range(4)]
        assert answers == [415, 415, 429, 429]
        assert client.get("/v1/index", headers=headers).status_code == 200


@pytest.mark.parametrize("limited", [False, True])
def test_clients_without_keys_are_limited_only_if_so_set(clip_store, tiny_encoder, tmp_path, limited):
    options = {"limit_clients": limited, "rate_limit": 0.01, "rate_burst": 2}
    with serving(clip_store, tiny_encoder, tmp_path, **options) as client:
        answers = [client.get("/v1/index").status_code for _ in range(4)]
        assert answers == [200, 200, 429, 429] if limited else [200] * 4
        assert client.get("/health/live").status_code == 200
