"""The warning about a store of the demo model that holds anything but the demo's own clips.

The demo model was trained on generated clips of moving shapes alone. On other footage its scores look just as good
(cosines of 0.6 to 0.9) but mean nothing, so every program that shows such a store warns about it. A clip is the demo's
own if its name and one of its captions are those that the generator gives to one and the same scene, wherever the file
is stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from model.config import load_mapping
from model.demo import DEMO_DESCRIPTION
from model.demo.captions import captions_of
from model.demo.scene import make_scene

if TYPE_CHECKING:
    from indexer.library import Library
    from indexer.store.config import Manifest

DEMO = "demo"
NOTICE = (
    "this library is indexed with the demo model, which only knows generated clips of moving shapes: its answers about "
    "other videos mean nothing, whatever their scores. Index them with a real model: "
    "`emcl index build VIDEOS --store NEW --model small`"
)

_CLIP_NAME = re.compile(r"(train|val|test)-(\d{1,9})-(\d{6,9})")
_PAGE = 200


def demo_notice(reader: Library) -> str | None:
    """``NOTICE`` if the demo model made the store and it holds a video that is not of the demo's corpus, else None."""
    if not is_of_the_demo_model(reader.manifest):
        return None
    return NOTICE if any(not is_own_clip(title, captions) for title, captions in _videos(reader)) else None


def is_own_clip(title: str, captions: list[str]) -> bool:
    """Whether a video of this name, with these captions, is a clip of the demo's corpus."""
    named = _CLIP_NAME.fullmatch(title)
    if named is None:
        return False
    split, seed, index = named[1], int(named[2]), int(named[3])
    generated = captions_of(make_scene(seed, split, index), seed, index)  # type: ignore[arg-type]
    return not set(generated).isdisjoint(captions)


def is_of_the_demo_model(manifest: Manifest) -> bool:
    """Whether the demo model made a generation."""
    return manifest.model_spec.model == DEMO or manifest.fingerprint == load_mapping(DEMO_DESCRIPTION)["fingerprint"]


def _videos(reader: Library) -> Iterator[tuple[str, list[str]]]:
    for offset in range(0, reader.counts.videos, _PAGE):
        for video in reader.list_videos(offset, _PAGE):
            yield video.title, [caption.text for caption in video.captions]
