"""A service around the small store of the tests: settings, engine, application, a client of it, and videos for it."""

from __future__ import annotations

import copy
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from indexer.locations import Location
from indexer.store.config import ModelSpec, StoreSettings
from indexer.store.writer import EncodedSegment, EncodedVideo, StoreWriter
from model.checkpoint import fingerprint
from model.encoder import Encoder
from service.access.keys import KeyStore
from service.app import create_app
from service.cli import main
from service.search.engine import Engine, reader_opener
from service.search.values import QueryLimits, Ranking, UploadQuery
from service.settings import Settings, load_settings, variable_name

PROBLEM = "application/problem+json"


def make_app(clip_store, encoder, folder, **options):
    """An application; ``folder`` is where keys and jobs are."""
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
        reader_opener(settings, encoder),
        limits=QueryLimits.from_settings(settings),
        cache_entries=settings.cache_entries,
    )
    return create_app(settings, engine)


@contextmanager
def serving(clip_store, encoder, folder, **options):
    """A client of a running application."""
    with TestClient(make_app(clip_store, encoder, folder, **options)) as client:
        yield client


def make_keys(folder):
    """A key for each scope: the key store, and the tokens by scope."""
    key_store = KeyStore(folder / "keys.json")
    return key_store, {scope: key_store.create(f"{scope}er", scope)[1] for scope in ("search", "write", "admin")}


def assert_problem(response, status, *, slug=None, mentions=""):
    """The answer is a problem that says all that problems say; returns it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM
    problem = response.json()
    assert problem["status"] == status
    for field in ("type", "title", "detail", "expected", "next_step"):
        assert problem[field], field
    if slug is not None:
        assert problem["type"] == f"/docs#problem-{slug}"
    assert mentions in response.text
    return problem


def with_head(encoder, attach):
    """A copy of a model with a head of seeded random weights, which ``attach`` gives to its net."""
    net = copy.deepcopy(encoder.net)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        attach(net)
    net.eval()
    assert fingerprint(net) == encoder.fingerprint, "a head changes no features, so the index stays valid"
    return Encoder(net, encoder.tokenizer, fingerprint=fingerprint(net), device=torch.device("cpu"))


def ids_of(client):
    """The ids of the first videos by their titles."""
    return {video["title"]: video["video_id"] for video in client.get("/v1/videos").json()["videos"]}


def assert_same_hits(left, right):
    """The same segments in the same order, with the same scores but for rounding."""
    assert [(hit["video_id"], hit["segment"]) for hit in left] == [(hit["video_id"], hit["segment"]) for hit in right]
    assert [hit["score"] for hit in left] == pytest.approx([hit["score"] for hit in right], abs=1e-5)


def bearer(token):
    """The header that carries a key."""
    return {"Authorization": f"Bearer {token}"}


def random_video(rng, encoder, number, *, most_frames=6, lean_D=None):
    """A video of random features with the id ``number``: 1 to 3 segments of 1 to ``most_frames`` frames.

    With ``lean_D`` each segment leans by a random amount to that direction, and features are what float16 can hold.
    """
    segments = []
    for part in range(1 + number % 3):
        frames = int(rng.integers(1, most_frames + 1))
        features = rng.normal(size=(1, frames, encoder.dim))
        if lean_D is not None:
            features = (features + rng.normal() * lean_D).astype(np.float16)
        features = features.astype(np.float32)
        segments.append(
            EncodedSegment(
                number=part,
                start_seconds=10.0 * part,
                end_seconds=10.0 * part + 10,
                timestamps_seconds=10.0 * part + np.arange(frames) * 1.5,
                features_FD=features[0],
                pooled_D=encoder.pool(features, np.ones((1, frames), bool))[0],
            )
        )
    return EncodedVideo(
        video_id=f"{number:064x}",
        name=f"{number:064x}",
        duration_seconds=10.0 * len(segments),
        width=64,
        height=48,
        reason=None,
        segments=segments,
    )


def emcl_command(monkeypatch, capsys, *first):
    """A function that runs ``emcl FIRST ARGUMENTS`` in this process: exit code, output and errors.

    No setting comes from the environment, but what is set there afterwards.
    """
    for name in Settings.model_fields:
        monkeypatch.delenv(variable_name(name), raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["emcl", *first, *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


LIMITS = QueryLimits(max_texts=64, max_text_chars=200, max_candidates=1000)
VIDEOS, CAPTIONS = 60, 50


def video_id(number):
    """The id of a video of ``fill_store``."""
    return f"{number:064x}"


def fill_store(path, encoder, videos=VIDEOS, captions=CAPTIONS):
    """A store of random features: videos of 1 to 3 segments of 1 to 6 frames, captions encoded by the model."""
    rng = np.random.default_rng(7)
    settings = StoreSettings(
        model_spec=ModelSpec(), fingerprint=encoder.fingerprint, dim=encoder.dim, sampling=encoder.config.sampling
    )
    with StoreWriter.open(path, settings=settings) as writer:
        names = [video_id(number) for number in range(videos)]
        if names:
            places = [
                Location(path=f"/nowhere/v{n}.mp4", video_id=name, size_bytes=1, modified_ns=1)
                for n, name in enumerate(names)
            ]
            writer.add_locations(places)
            writer.add_videos([random_video(rng, encoder, number) for number in range(videos)])
            writer.add_tags({name: [f"mod3-{n % 3}", f"mod2-{n % 2}"] for n, name in enumerate(names)})
        texts = [f"caption number {number} of a thing" for number in range(captions)]
        if texts:
            writer.add_captions([(None, text) for text in texts], encoder.encode_texts(texts))
        writer.publish(encoder)
    return path


def ids(result):
    return [(hit.video_id, hit.segment) for hit in result.hits]


def upload(seed, frames=4, size=32, **changes):
    rng = np.random.default_rng(seed)
    return UploadQuery(
        frames_FHWC=rng.integers(0, 256, (frames, size, size, 3), dtype=np.uint8),
        timestamps_seconds=np.arange(frames, dtype=np.float64),
        ranking=Ranking(**changes),
    )
