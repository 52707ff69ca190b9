"""What the indexer's tests share, and a script that they start as a process of its own to kill it.

Nothing here imports torch, so that such a process is there at once. ``FakeEncoder`` stands for the model: its features
are a fixed function of the pixels or the text, the same alone and in a batch, to the last bit.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from indexer.build import encode
from indexer.build.decode import DecodeSettings
from indexer.build.decode_pool import Reader, ReaderSettings
from indexer.build.options import BuildRequest
from indexer.build.progress import BuildReport, Progress
from indexer.build.run import build
from indexer.locations import Location
from indexer.store.config import ModelSpec, StoreSettings
from indexer.store.reader import StoreReader
from indexer.store.writer import EncodedSegment, EncodedVideo, StoreWriter
from model.clip.preprocess import Preprocess
from model.config import PoolingConfig, SamplingConfig
from model.video.recording import Recording

DIM, IMAGE_SIZE = 8, 16
FINGERPRINT = "ab" * 32


class FakeMap:
    """The frozen map of strength zero: it only normalises."""

    def to_arrays(self) -> dict[str, np.ndarray]:
        return {
            "mode": np.array("channel"),
            "responsibilities": np.ones((DIM, 1), dtype=np.float32),
            "base_norms": np.ones(1, dtype=np.float32),
            "strength": np.array(0.0),
        }


class FakeEncoder:
    """Features from pixels and texts without a net."""

    dim = DIM
    preprocess = Preprocess.square(IMAGE_SIZE)

    def __init__(self, fingerprint: str = FINGERPRINT, scale: float = 1.0, pause_seconds: float = 0.0) -> None:
        self.fingerprint = fingerprint
        self.scale = scale
        self.pause_seconds = pause_seconds
        self.encoded_segments = 0
        self._weights = np.random.default_rng(1).standard_normal((DIM, 48)).astype(np.float32)

    def truncates(self, text: str) -> bool:
        return len(text.split()) > 30

    def unknown_script(self, text: str) -> str | None:
        return None

    def former_fingerprints(self) -> frozenset[str]:
        return frozenset()

    def encode_videos(self, frames_BFHWC: np.ndarray, mask_BF: np.ndarray) -> np.ndarray:
        assert frames_BFHWC.dtype == np.uint8
        assert frames_BFHWC.shape[2:] == (IMAGE_SIZE, IMAGE_SIZE, 3)
        time.sleep(self.pause_seconds)
        self.encoded_segments += len(frames_BFHWC)
        features = np.zeros((*mask_BF.shape, DIM), dtype=np.float32)
        for b, f in zip(*np.nonzero(mask_BF), strict=True):
            cells = frames_BFHWC[b, f].reshape(4, 4, 4, 4, 3).mean(axis=(1, 3)).ravel() / 255.0 - 0.5
            features[b, f] = [float(row @ cells) * self.scale for row in self._weights]
        return features

    def pool(self, features_BFD: np.ndarray, mask_BF: np.ndarray) -> np.ndarray:
        rows = [features[mask].mean(axis=0) for features, mask in zip(features_BFD, mask_BF, strict=True)]
        return np.stack(rows).astype(np.float32)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") for text in texts]
        rows = [np.random.default_rng(seed).standard_normal(DIM) for seed in seeds]
        return np.array(rows, dtype=np.float32).reshape(-1, DIM)

    pooling = PoolingConfig()
    calibrated = None

    def fit_frozen_map(self, rows_ND: np.ndarray) -> FakeMap:
        assert rows_ND.ndim == 2
        assert len(rows_ND) > 0
        return FakeMap()

    def map_rows(self, frozen_map: object, rows_ND: np.ndarray) -> np.ndarray:
        norms = np.linalg.norm(rows_ND, axis=1, keepdims=True)
        return (rows_ND / np.maximum(norms, 1e-12)).astype(np.float32)


def settings(**changes: object) -> StoreSettings:
    """Settings of a store for ``FakeEncoder``."""
    given = {
        "model_spec": ModelSpec(model="demo"),
        "fingerprint": FINGERPRINT,
        "dim": DIM,
        "sampling": SamplingConfig(sample_fps=4.0, max_frames=6),
        "segment_seconds": 1.0,
        **changes,
    }
    return StoreSettings(**given)


def make_clip(path: Path, seed: int, seconds: float = 1.0, size: int = 32) -> Path:
    """Write a small MPEG-4 clip of changing colour patches at 8 frames a second, different for each seed."""
    import av

    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for _ in range(round(seconds * 8)):
            patches = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            picture = np.kron(patches, np.ones((size // 4, size // 4, 1), dtype=np.uint8))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def video_of(number: int, segments: int = 1, dim: int = DIM) -> EncodedVideo:
    """An encoded video with random features that depend on ``number`` alone."""
    rng = np.random.default_rng(number)
    parts = []
    for n in range(segments):
        features = rng.standard_normal((1 + (number + n) % 4, dim)).astype(np.float32)
        times = n * 30.0 + np.arange(len(features), dtype=np.float64)
        parts.append(
            EncodedSegment(
                number=n,
                start_seconds=n * 30.0,
                end_seconds=n * 30.0 + 30.0,
                timestamps_seconds=times,
                features_FD=features,
                pooled_D=features.mean(axis=0),
            )
        )
    return EncodedVideo(
        video_id=f"{number:064x}",
        name=f"/clips/{number}.mp4",
        duration_seconds=30.0 * segments,
        width=1280 if number % 3 else 64,
        height=720 if number % 3 else 48,
        reason=None,
        segments=parts,
        recording=Recording(
            recorded_seconds=86400.0 * number if number % 5 else None,
            camera=("Google Pixel 8", "Apple iPhone 15 (100%_)", None)[number % 3],
        ),
    )


def location_of(number: int) -> Location:
    """Where ``video_of(number)`` is."""
    return Location(path=f"/clips/{number}.mp4", video_id=f"{number:064x}", size_bytes=10, modified_ns=1)


def fill(writer: StoreWriter, numbers: Sequence[int], captions: int = 2) -> None:
    """Add videos, one commit each, with ``1 + number % 3`` segments, captions and a tag."""
    encoder = FakeEncoder()
    for number in numbers:
        if location_of(number).video_id in {v for v, s in writer.catalogue.states().items() if s == "indexed"}:
            continue
        writer.add_locations([location_of(number)])
        assert writer.add_videos([video_of(number, 1 + number % 3)]) == {}
    texts = [(location_of(n).video_id, f"caption {i} of {n}") for n in numbers for i in range(captions)]
    new = [caption for caption in texts if not writer.catalogue.has_caption(*caption)]
    if new:
        writer.add_captions(new, encoder.encode_texts([text for _, text in new]))
    writer.add_tags({location_of(n).video_id: ["even" if n % 2 == 0 else "odd"] for n in numbers})


def contents(store: Path) -> dict[str, object]:
    """Everything that can be found in a store, without the numbers that depend on the order of work."""
    from indexer.store.reader import StoreReader

    with StoreReader.open(store, fingerprint=FINGERPRINT) as reader:
        found: dict[str, object] = {}
        for video in reader.list_videos(limit=1000, state=None):
            ids = np.array([segment.segment_id for segment in video.segments], dtype=np.int64)
            features, mask = reader.segment_features(ids)
            windows = [(s.number, s.start_seconds, s.end_seconds, *s.timestamps_seconds) for s in video.segments]
            found[video.video_id] = (
                *(video.state, video.reason, video.tags, video.paths, video.duration_seconds),
                *(windows, [part[keep].tobytes() for part, keep in zip(features, mask, strict=True)]),
                reader.segment_embeddings(ids).tobytes(),
                sorted(caption.text for caption in video.captions),
            )
        captions = reader.captions(reader.caption_ids())
        found["captions"] = sorted((c.video_id or "", c.text) for c in captions)
        found["counts"] = reader.manifest.counts
        queries = FakeEncoder().encode_texts(["red", "blue", "a hand"])
        scores, ids = reader.search_videos(FakeEncoder().map_rows(None, queries), 5)
        found["hits"] = [[(s.video_id, s.number) for s in reader.segments(row)] for row in ids]
        found["scores"] = scores.tobytes()
    return found


def _steps(folder: Path) -> None:
    """For n = 0, 1, …: fill and publish ``folder/n`` in a process that kills itself before its n-th ``fsync``."""
    for number in range(200):
        child = os.fork()
        if child == 0:
            kill_before_fsync(number)
            with StoreWriter.open(folder / str(number), settings=settings()) as writer:
                fill(writer, range(2))
                writer.publish(FakeEncoder())
                fill(writer, range(3))
                writer.publish(FakeEncoder())
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            return
    raise AssertionError("200 fsyncs were not enough")


def kill_before_fsync(number: int) -> None:
    real, calls = os.fsync, [0]

    def fsync(descriptor: int) -> None:
        if calls[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        calls[0] += 1
        real(descriptor)

    os.fsync = fsync


class _PrintedProgress(Progress):
    """Prints a line for every fsync and every finished video, for the parent to choose the moment of the kill."""

    def __init__(self) -> None:
        real = os.fsync

        def fsync(descriptor: int) -> None:
            print("fsync", flush=True)
            real(descriptor)

        os.fsync = fsync


def _build(store: Path, corpus: Path) -> None:
    encode.SEGMENT_BATCH = 2
    progress = _PrintedProgress()
    add_videos = StoreWriter.add_videos

    def add_and_print(writer: StoreWriter, videos: Sequence[EncodedVideo]) -> dict[str, str]:
        failures = add_videos(writer, videos)
        for video in videos:
            print("committed", video.video_id, flush=True)
        return failures

    StoreWriter.add_videos = add_and_print
    request = BuildRequest(paths=[str(corpus)], captions=corpus / "captions.jsonl", workers=1)
    with StoreWriter.open(store, settings=settings()) as writer:
        build(writer, FakeEncoder(pause_seconds=0.01), request, progress)


def _hang(folder: Path) -> None:
    """Start a decode worker that never comes back."""
    options = DecodeSettings(sampling=SamplingConfig(), segment_seconds=1, preprocess=Preprocess.square(IMAGE_SIZE))
    with Reader(ReaderSettings(decode=options, workers=1)) as reader:
        reader.pool.schedule(_never_end, args=(folder,)).result()


def _never_end(folder: Path) -> None:
    (folder / "started").write_text(str(os.getpid()))
    while True:
        time.sleep(1)


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    {"steps": _steps, "build": _build, "hang": _hang}[command](*map(Path, arguments))


def index(store: Path, *paths: Path | str, encoder: FakeEncoder | None = None, **options: object) -> BuildReport:
    """Index files and folders, as ``emcl index`` does."""
    request = BuildRequest(paths=[str(path) for path in paths], **options)
    with StoreWriter.open(store, settings=settings()) as writer:
        return build(writer, encoder or FakeEncoder(), request, Progress())


def write_clips(folder: Path) -> Path:
    """Four short clips, and one that becomes several segments."""
    for number in range(4):
        make_clip(folder / f"{number}.mp4", number, seconds=0.5)
    make_clip(folder / "long.mp4", 9, seconds=3.5)
    return folder


def by_name(store: Path) -> dict[str, object]:
    """The videos of a store by the name of their file."""
    with StoreReader.open(store) as reader:
        return {Path(video.path or "none").name: video for video in reader.list_videos(state=None)}
