"""What search by words adds to a query: the same texts with `fusion: auto` and `visual`, turn about.

    python -m benchmarks.fusion --segments 100000 --folder F

A store of as many segments, one a video, each with a caption of ten words; every hundredth video has a transcript of a
hundred cues besides. Words are drawn from 30,000 with frequencies as in a language (Zipf). The shipped model scores
the candidates, and texts are encoded before they are timed, so the difference is what fusion costs (processor time,
which other programs on the machine change less than the time on the clock): finding words,
giving videos that only words found a visual score, and fusing. The store in F is kept, and used again.

Legend: N captions, D channels.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpus import write_demo_store

VOCABULARY, CAPTION_WORDS, CUES, CUE_WORDS, VIDEOS_PER_TALK = 30_000, 10, 100, 8, 100
QUERIES, ROUNDS, BATCH = 60, 5, 1000
LIMIT_MS = 2.0


def words(rng: np.random.Generator, count: int) -> list[str]:
    """Words with frequencies that fall with their rank, as in a language."""
    ranks = np.minimum(rng.zipf(1.3, count), VOCABULARY)
    return [f"w{rank}x" for rank in ranks]


def add_texts(store: Path) -> None:
    """Give every video its caption, and some a transcript."""
    from indexer.sources.transcripts import Cue
    from indexer.store.records import TranscriptRow
    from indexer.store.writer import StoreWriter

    rng = np.random.default_rng(1)
    with StoreWriter.open(store) as writer:
        ids = sorted(writer.catalogue.states())
        for start in range(0, len(ids), BATCH):
            part = ids[start : start + BATCH]
            captions = [(video_id, " ".join(words(rng, CAPTION_WORDS))) for video_id in part]
            writer.add_captions(captions, rng.standard_normal((len(part), writer.settings.dim), np.float32))
            talks = {}
            for video_id in part[::VIDEOS_PER_TALK]:
                cues = tuple(
                    Cue(start_seconds=float(n), end_seconds=n + 0.9, text=" ".join(words(rng, CUE_WORDS)))
                    for n in range(CUES)
                )
                talks[video_id] = [TranscriptRow(language="en", origin="file", source="", version="", cues=cues)]
            writer.set_transcripts(talks)


def queries_of(reader: Any) -> dict[str, list[str]]:
    """Queries by kind, made of captions that are there."""
    rng = np.random.default_rng(2)
    captions = [one.text.split() for one in reader.list_captions(0, QUERIES)]
    return {
        "a whole caption": [" ".join(caption) for caption in captions],
        "two words of a caption": [" ".join(rng.choice(caption, 2, replace=False)) for caption in captions],
        "the two most frequent words": ["w1x w2x"] * QUERIES,
        "the beginning of a word": [f"w{number}" for number in range(10, 10 + QUERIES)],
        "words that no text has": [f"none{number} other{number}" for number in range(QUERIES)],
    }


def measure(store: Path, encoder: Any) -> dict[str, dict[str, float]]:
    """Milliseconds by kind of query: median and 95th percentile of the difference, and the median without words."""
    from indexer.store.reader import StoreReader
    from service.search.engine import Engine
    from service.search.values import QueryLimits, Ranking, SearchQuery
    from service.settings import Settings

    limits = QueryLimits.from_settings(Settings(store=store), default_candidates=encoder.config.search.candidates)
    engine = Engine(encoder, lambda: StoreReader.open(store), limits=limits, cache_entries=10_000)
    with engine.live.lease() as generation:
        kinds = queries_of(generation.reader)
    found: dict[str, dict[str, float]] = {}
    for kind, texts in kinds.items():
        extra, visual = [], []
        for number in range(ROUNDS + 1):
            for text in texts:
                taken = {}
                for fusion in ("auto", "visual") if number % 2 else ("visual", "auto"):
                    query = SearchQuery(text=text, ranking=Ranking(k=10, fusion=fusion))
                    begun = time.thread_time()
                    engine.search([query])
                    taken[fusion] = (time.thread_time() - begun) * 1000
                if number:  # the first round encodes, and reads what is not in memory
                    extra.append(taken["auto"] - taken["visual"])
                    visual.append(taken["visual"])
        found[kind] = {
            "median_ms": float(np.median(extra)),
            "p95_ms": float(np.percentile(extra, 95)),
            "without_words_ms": float(np.median(visual)),
        }
    engine.close()
    return found


def main() -> None:
    """Make the store unless it is there, measure, and print a line for each kind of query."""
    import torch

    from model.encoder import load_encoder

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segments", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    encoder = load_encoder("demo")
    store = asked.folder / f"store-{asked.segments}"
    done = asked.folder / f"store-{asked.segments}.done"
    if not done.exists():
        write_demo_store(store, encoder, count=asked.segments)
        add_texts(store)
        done.touch()
    for kind, taken in measure(store, encoder).items():
        print(json.dumps({"query": kind, **{name: round(value, 2) for name, value in taken.items()}}), flush=True)


if __name__ == "__main__":
    main()
