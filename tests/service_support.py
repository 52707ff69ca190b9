"""A service around the small store of the tests: settings, engine, application, and a client of it."""

from contextlib import contextmanager

from fastapi.testclient import TestClient

from indexer.store import StoreReader
from service.app import create_app
from service.deps import query_limits
from service.engine import Engine
from service.keys import KeyBook
from service.settings import load_settings


def make_app(clip_store, encoder, folder, **options):
    """An application; ``folder`` is where keys and jobs lie."""
    settings = load_settings(
        {
            "store": clip_store / "store",
            "allowed_hosts": "testserver",
            "keys_file": folder / "keys.json",
            "jobs_folder": folder / "jobs",
            "preview_folder": folder / "previews",
            "embedded_worker": "off",
            **options,
        }
    )
    engine = Engine(
        encoder,
        lambda: StoreReader.open(settings.store, fingerprint=encoder.fingerprint),
        limits=query_limits(settings),
        cache_entries=settings.cache_entries,
    )
    return create_app(settings, engine)


@contextmanager
def serving(clip_store, encoder, folder, **options):
    """A client of a running application."""
    with TestClient(make_app(clip_store, encoder, folder, **options)) as client:
        yield client


def make_keys(folder):
    """A key for each scope: its token by scope, and the book."""
    book = KeyBook(folder / "keys.json")
    return book, {scope: book.create(f"{scope}er", scope)[1] for scope in ("search", "write", "admin")}


def bearer(token):
    """The header that carries a key."""
    return {"Authorization": f"Bearer {token}"}
