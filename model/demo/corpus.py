"""The demo corpus on the disk: a folder of H.264 clips with ``captions.jsonl``, and the names of its clips."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
from tqdm import tqdm

from model.demo.captions import captions_of
from model.demo.questions import questions_of
from model.demo.render import render
from model.demo.scene import Scene, Split, make_scene

CLIP_SIZE = 160
CLIP_FPS = 12


def clip_id(seed: int, split: Split, index: int) -> str:
    """Return the name of a clip's file, without its suffix."""
    return f"{split}-{seed}-{index:06d}"


def write_clip(scene: Scene, path: Path) -> None:
    """Draw ``scene`` at full size and write it as H.264 in MP4 (4:2:0, as people's videos are)."""
    count = round(scene.duration_seconds * CLIP_FPS)
    frames = render(scene, np.arange(count) / CLIP_FPS, CLIP_SIZE)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        # One thread and a fixed preset: the same scene gives the same bytes with the same libraries.
        stream = container.add_stream(
            "libx264", rate=CLIP_FPS, options={"crf": "23", "preset": "veryfast", "threads": "1"}
        )
        stream.width = stream.height = CLIP_SIZE
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, CLIP_FPS)
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def _write_one(index: int, *, folder: Path, seed: int, split: Split, captions: int) -> str:
    scene = make_scene(seed, split, index)
    path = folder / f"{clip_id(seed, split, index)}.mp4"
    write_clip(scene, path)
    record = {"video": path.name, "captions": captions_of(scene, seed, index)[:captions], "tags": scene.tags}
    return json.dumps(record, ensure_ascii=False)


def write_corpus(folder: Path, *, split: Split, count: int, seed: int = 0, captions: int = 2, workers: int = 2) -> Path:
    """Write ``count`` clips and ``captions.jsonl`` (one object per clip: video, captions, tags) into ``folder``.

    ``questions.jsonl`` beside it has questions about the clips in MSRVTT-QA's format. Each clip gets its first
    ``captions`` captions, at most 2. Returns the path of ``captions.jsonl``, which is written last, so that it exists
    only with a complete corpus.
    """
    if count < 1 or workers < 1:
        raise ValueError(f"count and workers must be at least 1, got count={count}, workers={workers}")
    folder.mkdir(parents=True, exist_ok=True)
    write = partial(_write_one, folder=folder, seed=seed, split=split, captions=captions)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        lines = list(tqdm(pool.map(write, range(count), chunksize=8), total=count, desc=f"{split} clips", unit="clip"))
    asked = [
        {"question": text, "answer": answer, "video_id": clip_id(seed, split, index), "answer_type": kind}
        for index in range(count)
        for text, answer, kind in questions_of(make_scene(seed, split, index))
    ]
    text = "".join(json.dumps(question) + "\n" for question in asked)
    (folder / "questions.jsonl").write_text(text, encoding="utf-8")
    listing = folder / "captions.jsonl"
    listing.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return listing
