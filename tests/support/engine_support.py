"""A store of random features for the tests of the engine, and queries of it."""

import numpy as np
from service_support import random_video

from indexer.locations import Location
from indexer.store.config import ModelSpec, StoreSettings
from indexer.store.writer import StoreWriter
from service.search.values import QueryLimits, Ranking, UploadQuery

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
