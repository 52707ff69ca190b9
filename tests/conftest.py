"""Fixtures shared by all tests: golden arrays, real clips where they are beside the checkout, small random models."""

from __future__ import annotations

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# With `auto`, the first command that meets a model would measure its runtimes, for seconds, in the checkout.
os.environ.setdefault("EMCL_RUNTIME", "torch")

import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "data" / "golden"
CLIPS = Path(__file__).parents[2] / "shared" / "clips"


@pytest.fixture
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """Load ``tests/data/golden/NAME.npz`` as a dictionary of arrays."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            return {key: arrays[key] for key in arrays.files}

    return load


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """Folder of 15 real recordings with ``captions.jsonl``; tests that need it skip where it is absent."""
    if not CLIPS.is_dir():
        pytest.skip(f"the real recordings are not distributed with the project (looked in {CLIPS.name}/ beside it)")
    return CLIPS


@pytest.fixture(scope="session")
def tiny_config():
    """A CLIP-shaped model of a few thousand parameters, transformer on top; random weights when built."""
    from model.config import ClipConfig, ModelConfig, SamplingConfig, TemporalConfig, TokenizerConfig

    custom = {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 32, "vocab_size": 512 + 200 + 2, "width": 32, "heads": 2, "layers": 2},
    }
    return ModelConfig(
        name="tiny",
        clip=ClipConfig(custom=custom),
        tokenizer=TokenizerConfig(merges=200, max_words=32),
        temporal=TemporalConfig(kind="transformer", layers=1, max_positions=32),
        sampling=SamplingConfig(sample_fps=2.0, max_frames=6),
    )


@pytest.fixture(scope="session")
def tiny_encoder(tiny_config):
    """An ``Encoder`` around a tiny net with seeded random weights, on the CPU."""
    import torch

    from model.checkpoint import fingerprint
    from model.clip.tokenizer import build_tokenizer
    from model.encoder import Encoder
    from model.net import build_net

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build_net(tiny_config)
        # CLIP's own initialisation leaves a tiny model's features almost equal; spread them.
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.3)
    tokenizer = build_tokenizer(tiny_config.tokenizer, tiny_config.clip)
    return Encoder(net, tokenizer, fingerprint=fingerprint(net), device=torch.device("cpu"))


@pytest.fixture(scope="session")
def clip_store(tmp_path_factory, tiny_encoder):
    """Six generated clips in ``clips/``, indexed in ``store/`` with the tiny model: two captions and two tags each.

    They say that they were recorded at noon of the first day of six months, those of even numbers by a Canon.
    """
    import hashlib
    from datetime import UTC, datetime

    from indexer.locations import Location
    from indexer.store.config import ModelSpec, StoreSettings
    from indexer.store.writer import EncodedSegment, EncodedVideo, StoreWriter
    from model.demo.captions import captions_of
    from model.demo.corpus import write_clip
    from model.demo.scene import make_scene
    from model.video.recording import Recording
    from model.video.sampling import decode

    folder = tmp_path_factory.mktemp("clip_store")
    (folder / "clips").mkdir()
    sampling = tiny_encoder.config.sampling
    settings = StoreSettings(
        model_spec=ModelSpec(), fingerprint=tiny_encoder.fingerprint, dim=tiny_encoder.dim, sampling=sampling
    )
    with StoreWriter.open(folder / "store", settings=settings) as writer:
        for number in range(6):
            scene = make_scene(0, "test", number)
            path = folder / "clips" / f"clip_{number}.mp4"
            write_clip(scene, path)
            content = path.read_bytes()
            video_id = hashlib.sha256(content).hexdigest()
            writer.add_locations(
                [Location(path=str(path), video_id=video_id, size_bytes=len(content), modified_ns=number)]
            )
            batch = decode(path, sampling=sampling)
            frames = tiny_encoder.preprocess(batch.frames)[None]
            mask = np.ones(frames.shape[:2], bool)
            features = tiny_encoder.encode_videos(frames, mask)
            segment = EncodedSegment(
                number=0,
                start_seconds=0.0,
                end_seconds=batch.duration_seconds,
                timestamps_seconds=batch.timestamps_seconds,
                features_FD=features[0],
                pooled_D=tiny_encoder.pool(features, mask)[0],
            )
            video = EncodedVideo(
                video_id=video_id,
                name=path.name,
                duration_seconds=batch.duration_seconds,
                width=batch.width,
                height=batch.height,
                reason=None,
                segments=[segment],
                recording=Recording(
                    recorded_seconds=datetime(2024, 1 + number, 1, 12, tzinfo=UTC).timestamp(),
                    camera="Canon EOS R5" if number % 2 == 0 else None,
                ),
            )
            writer.add_videos([video])
            captions = captions_of(scene, 0, number)[:2]
            writer.add_captions([(video_id, text) for text in captions], tiny_encoder.encode_texts(captions))
            writer.add_tags({video_id: ["even" if number % 2 == 0 else "odd", f"number-{number}"]})
        writer.publish(tiny_encoder)
    return folder


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> list[bytes]:
    """The bytes of six generated clips that are in no store."""
    from model.demo.corpus import write_clip
    from model.demo.scene import make_scene

    folder = tmp_path_factory.mktemp("new_clips")
    for number in range(6):
        write_clip(make_scene(1, "test", number), folder / f"{number}.mp4")
    return [(folder / f"{number}.mp4").read_bytes() for number in range(6)]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory, tiny_encoder) -> Path:
    """The tiny model as a checkpoint file, with its EMCL settings as if calibrated: else EMCL would be off."""
    from model.checkpoint import save_checkpoint

    metadata = {"calibration": {"emcl": tiny_encoder.config.emcl.model_dump(mode="json")}}
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    return save_checkpoint(tiny_encoder.net, path, metadata=metadata)


@pytest.fixture(scope="session")
def validation_folder(tmp_path_factory) -> Path:
    """Ten generated validation clips with two captions each, listed in ``captions.jsonl``."""
    from model.demo.corpus import write_corpus

    folder = tmp_path_factory.mktemp("validation") / "val"
    write_corpus(folder, split="val", count=10, captions=2, workers=1)
    return folder


@pytest.fixture(scope="module")
def client(clip_store, tiny_encoder, tmp_path_factory):
    """A client of a service over the small store, for tests that change nothing."""
    from service_support import serving

    with serving(clip_store, tiny_encoder, tmp_path_factory.mktemp("client"), max_text_chars=100, max_texts=8) as made:
        yield made


@pytest.fixture
def video_id(client) -> str:
    """One of the videos of ``client``."""
    return client.get("/v1/videos").json()["videos"][0]["video_id"]


class Server:
    """``emcl serve`` in a process of its own, on a free port. ``said`` holds the lines of its log."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "service.cli", "serve", "--port", "0", *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r"running on (http://127\.0\.0\.1:(\d+))", line):
                self.url, self.port = found[1], int(found[2])
                break
        else:
            self.process.wait()
            self.process.stderr.close()
            raise RuntimeError("the server did not start:\n" + "".join(self.said))
        self._log = threading.Thread(target=lambda: self.said.extend(self.process.stderr))
        self._log.start()

    def stop(self) -> int:
        """End it as a service manager does; returns its exit code. One that does not end is killed."""
        self.process.terminate()
        try:
            return self.process.wait(60)
        finally:
            self.kill()

    def kill(self) -> None:
        """End it as a power cut does."""
        self.process.kill()
        self.process.wait()
        self._log.join(10)
        self.process.stderr.close()


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    """A real redis-server for a test module (``redis_support``); what a test breaks it must repair."""
    from redis_support import running_redis

    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def start_server() -> Iterator[Callable[..., Server]]:
    """Start servers with options; those that still run at the end are stopped."""
    servers: list[Server] = []

    def start(*options: str) -> Server:
        servers.append(Server(*map(str, options)))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.stop()
        else:
            server.kill()  # what it left open


@pytest.fixture(scope="session")
def page_server(clip_store, tiny_checkpoint, tmp_path_factory) -> Iterator[Server]:
    """A server over the small store, for tests that look at its page and change nothing."""
    options = ["--store", clip_store / "store", "--model", tiny_checkpoint, "--upload-max-bytes", "1MiB"]
    folder = tmp_path_factory.mktemp("page_server")
    server = Server(*map(str, [*options, "--jobs-folder", folder / "jobs", "--embedded-worker", "off"]))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium. Of one module: while it runs, the main thread has an event loop, which other tests forbid."""
    from page_support import running_browser

    with running_browser() as running:
        yield running


@pytest.fixture
def page(browser):
    """A page of its own session; ``page.complaints`` holds what its console says and what it asks of strangers."""
    from page_support import watched_page

    with watched_page(browser) as made:
        yield made
