"""The demo: generated clips, indexed with the shipped model; nothing is downloaded.

``FOLDER/clips`` holds the generated corpus (the split ``test``, of which no combination was trained on) with its
captions, ``FOLDER/store`` its index. Both are made once; what is there is used.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from indexer.store.reader import StoreReader
from model.demo import DEMO_DESCRIPTION

CAPTIONS_PER_CLIP = 2
_LISTING = "captions.jsonl"

SHOWCASE = (
    "a big red heart circles around over a brown checkerboard background",
    "on a solid white background, a large blue star moves left",
    "a small blue triangle sinks down against a navy striped background",
    "a little purple square rests against a striped navy background",
    "on a plain brown background, a little blue ring shrinks",
    "a huge blue triangle falls against a black checkerboard background",
)
"""Queries of the documentation and of ``emcl demo``: the first hit in the demo library carries each as its caption."""


def prepare(folder: Path, count: int, *, say: Callable[[str], None]) -> Path:
    """Make the clips and the index in ``folder``, unless they are there; returns the store.

    ``say`` is called with progress messages. Raises ``ValueError`` if the index cannot be made.
    """
    clips, store = folder / "clips", folder / "store"
    if _clips_in(clips) != count:
        say(f"making {count} short clips in {clips} (once) …")
        _make_clips(clips, count)
    if _is_of_another_model(store):
        say(f"the index in {store} was made with another version of the shipped model; removing it")
        shutil.rmtree(store)
    if _videos_in(store) != count:
        say(f"indexing them in {store} with the shipped model (once) …")
        _index(clips, store)
    return store


def examples(folder: Path, count: int = 2) -> list[str]:
    """Queries for the terminal: those of the showcase if its clips are there, else captions of the first clips."""
    with (folder / "clips" / _LISTING).open(encoding="utf-8") as listing:
        captions = [caption for line in listing for caption in json.loads(line)["captions"]]
    return ([query for query in SHOWCASE if query in captions] or captions)[:count]


def _clips_in(clips: Path) -> int:
    listing = clips / _LISTING  # written last, so that it stands only beside a complete corpus
    return len(listing.read_text(encoding="utf-8").splitlines()) if listing.exists() else 0


def _is_of_another_model(store: Path) -> bool:
    from indexer.options import recorded_settings
    from model.config import load_mapping

    made_with: str | None
    if (store / "CURRENT").exists():
        with StoreReader.open(store) as reader:
            made_with = reader.manifest.fingerprint
    else:  # nothing, or what an interrupted run left
        recorded = recorded_settings(store)
        made_with = None if recorded is None else recorded.fingerprint
    return made_with not in (None, load_mapping(DEMO_DESCRIPTION)["fingerprint"])


def _videos_in(store: Path) -> int:
    if not (store / "CURRENT").exists():
        return 0
    with StoreReader.open(store) as reader:
        return reader.manifest.counts.videos


def _make_clips(clips: Path, count: int) -> None:
    from model.demo.corpus import write_corpus

    for path in clips.glob("*.mp4"):
        path.unlink()  # of a corpus of another size
    write_corpus(clips, split="test", count=count, captions=CAPTIONS_PER_CLIP, workers=os.cpu_count() or 1)


def _index(clips: Path, store: Path) -> None:
    from indexer.cli import build

    # The folder belongs to the demo: clips that it no longer holds are not wanted.
    build([str(clips)], store, captions=clips / _LISTING, model="demo", force_prune=True)
