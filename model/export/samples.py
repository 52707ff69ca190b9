"""What the guard compares on: generated scenes, or videos and captions of the user's own.

Generated scenes are the demo corpus: for the demo model they are what it was trained for, for another CLIP they are
simple pictures and sentences, which show whether a runtime computes the same, less whether it ranks the user's videos
as well. So an int8 export for real use should be judged by ``--samples``.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.config import SamplingConfig
from model.export.guard import Samples

GENERATED_FRAMES = 4  # of each scene: enough to see it move, few enough for a real CLIP on one core
_DRAWN_SIZE = 128


def generated_samples(count: int, *, image_size: int, seed: int = 1) -> Samples:
    """``count`` scenes of the demo corpus's test split with one caption each, drawn in memory."""
    from model.clip.preprocess import resize_and_crop
    from model.demo.captions import captions_of
    from model.demo.render import render
    from model.demo.scene import make_scene

    frames, texts = [], []
    for index in range(count):
        scene = make_scene(seed, "test", index)
        times = (np.arange(GENERATED_FRAMES) + 0.5) / GENERATED_FRAMES * scene.duration_seconds
        frames.append(resize_and_crop(render(scene, times, _DRAWN_SIZE), image_size))
        texts.append(captions_of(scene, seed, index)[0])
    return Samples(source="generated scenes", frames=frames, texts=texts, video_of_text_T=np.arange(count))


def samples_of(manifest: Path, count: int, *, image_size: int, sampling: SamplingConfig) -> Samples:
    """The first ``count`` videos of a manifest (JSON lines of ``{video, captions}``) with all their captions.

    Raises ``ValueError`` or ``OSError`` for a manifest or a video that cannot be read.
    """
    from model.data.clips import Clip, load_frames
    from model.data.sources import open_for_evaluation

    clips: Sequence[Clip] = open_for_evaluation(manifest, "test", allow_missing=False).clips[:count]

    def load(clip: Clip) -> NDArray[np.uint8]:
        return load_frames(clip, image_size=image_size, sampling=sampling)

    with ThreadPoolExecutor(2) as pool:
        frames = list(pool.map(load, clips))
    texts = [text for clip in clips for text in clip.captions]
    owners = np.repeat(np.arange(len(clips)), [len(clip.captions) for clip in clips])
    return Samples(source=str(manifest), frames=frames, texts=texts, video_of_text_T=owners)
