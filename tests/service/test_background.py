"""Background work survives every exception: it is logged, counted, shown, and tried again."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from library_support import add, ended, make_app, send, until

from indexer.store import generation
from indexer.store.writer import StoreWriter
from service.background import LONGEST_PAUSE_SECONDS, Background
from service.redis_link import RedisLink


class OddError(Exception):
    """Of no kind that anybody lists."""


@pytest.fixture
def folder(clip_store: Path, tmp_path: Path) -> Path:
    shutil.copytree(clip_store / "store", tmp_path / "store")
    return tmp_path


def failing(times: int, then=lambda *_, **__: None):
    """A function that raises ``OddError`` so many times, and then does something else."""
    left = [times]

    def work(*arguments: object, **named: object) -> object:
        if left[0] > 0:
            left[0] -= 1
            raise OddError("odd")
        return then(*arguments, **named)

    return work


def test_pauses_grow_and_end_with_a_success(caplog):
    work, pauses = Background("work"), list[float]()
    step = failing(12)
    for _ in range(13):
        work.attempt(step, pauses.append)
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE_SECONDS
    assert (work.failures, work.trouble, len(pauses)) == (12, None, 12)
    assert len([record for record in caplog.records if "OddError: odd" in record.message]) == 1
    work.attempt(failing(1), pauses.append)
    assert pauses[-1] == pauses[0]
    assert work.trouble == "OddError: odd"


@pytest.mark.parametrize("error", [RuntimeError("could not write: No space left on device"), MemoryError(), OddError()])
def test_a_publication_that_fails_in_any_way_leaves_the_writer_free(folder, tiny_encoder, clips, monkeypatch, error):
    def publish(*_: object, **__: object) -> None:
        raise error

    with TestClient(make_app(folder, tiny_encoder, overlay_max_rows=1)) as client:
        with monkeypatch.context() as patch:
            patch.setattr(generation, "publish", publish)
            add(client, clips[0], captions=["one", "two", "three"])
            writer = client.app.state.services.library.writer
            until(lambda: writer.failures >= 1 and not writer.publishing, "the end of the publication")
        assert "emcl_background_failures_total" in client.get("/metrics").text
        assert client.get("/health/ready").json()["trouble"] == ["library publisher"]
        until(lambda: can_be_opened(folder / "store"), "the writer lets go of the store")
        add(client, clips[1], captions=[str(number) for number in range(8)])
        until(lambda: writer.publications >= 1 and not writer.publishing, "a publication")
        assert client.get("/health/ready").json()["trouble"] == []


def can_be_opened(store: Path) -> bool:
    try:
        StoreWriter.open(store).close()
    except ValueError:
        return False
    return True


def test_a_store_that_cannot_be_closed_in_order_is_let_go_and_changes_go_on(folder, tiny_encoder, clips, monkeypatch):
    from indexer.store.catalogue import Catalogue

    with TestClient(make_app(folder, tiny_encoder)) as client:
        closing = failing(1, Catalogue.close)
        monkeypatch.setattr(Catalogue, "close", lambda self: closing(self))
        add(client, clips[0])
        until(lambda: can_be_opened(folder / "store"), "the writer lets go of the store")
        add(client, clips[1])
        assert client.app.state.services.library.writer.background.failures == 1


def test_an_addition_whose_failure_cannot_be_recorded_is_tried_again(folder, tiny_encoder, clips):
    with TestClient(make_app(folder, tiny_encoder)) as client:
        additions = client.app.state.services.library.additions
        additions.work_on = failing(2, additions.work_on)
        assert ended(client, send(client, clips[0]))["state"] == "succeeded"
        assert additions.background.failures == 2
        assert additions.background.trouble is None


def test_a_probe_whose_pool_cannot_be_closed_asks_on(monkeypatch):
    async def scenario() -> None:
        link = RedisLink("redis://:secret@127.0.0.1:1/0", timeout_seconds=0.2, retry_seconds=0.01)
        link.start()
        assert link.client is not None
        monkeypatch.setattr(link.client.connection_pool, "disconnect", failing(2, nothing))
        monkeypatch.setattr(link.client, "ping", failing(4, nothing))
        async with asyncio.timeout(30):
            while not link.available:
                await asyncio.sleep(0.01)
        assert link.background.failures == 2
        await link.close()

    async def nothing(*_: object, **__: object) -> bool:
        return True

    asyncio.run(scenario())


def test_a_watcher_survives_every_exception():
    from service.search.live_index import Watcher

    looked = threading.Event()

    class Live:
        refresh = staticmethod(failing(3, lambda: looked.set()))

    watcher = Watcher(Live(), 0.01)
    watcher.start()
    assert looked.wait(30)
    watcher.close()
    assert watcher.trouble is None
