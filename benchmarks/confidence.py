"""Does "nothing fits well" separate texts that have a match from those without one?

    python -m benchmarks.confidence --features clip.npy            # (2, N, D): videos, texts; row i of both is a pair
    python -m benchmarks.confidence --demo var/demo                # as `emcl demo` makes it; made here if need be

Of a ``--features`` file, random splits: a library, as many texts as background, and texts of the rest, whose own video
is absent. Those are hard: other videos of the library may show nearly the same. Of the demo, the library is its 300
clips; the shipped background is halved, one half fitted and the other one asked, and the other way round; captions of
clips that are not in the library, and what people type to try things out, are asked too.

For each line, the share of queries whose best hit reaches it: with a match in the library (all, and those whose match
is the first hit), and without one. Intervals: 95 %, bootstrapped over queries. Beside what is served (a part of the
background's mean taken off) the cosine alone, compared with the background in the same way.

Legend: Q queries, N segments, n background texts.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.store.confidence import LINE, SHARE, background_texts, everyday_and_nonsense, fit
from indexer.store.reader import StoreReader
from model.emcl.hub import unit
from model.study.significance import bootstrap

Floats = NDArray[Any]

LINES = (0.5, 0.8, 0.9, LINE, 0.98)
SHARES = {"served": SHARE, "cosine": 0.0}
TYPED = (
    "qwertyuiop zxcvbnm", "asdf", "asdfasdf asdf", "qqqqqq", "xyzzy plugh", "blah blah blah", "lorem ipsum dolor",
    "test test", "123 456", "aaaaa", "hjkl hjkl", "zxcv", "foo bar baz", "!!!! ????", "wxyz qrst", "jjjj kkkk llll",
)  # fmt: skip


class Asked:
    """Confidence of the best hit of each kind of query, kept by item so that repetitions are averaged."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], dict[int, list[float]]] = {}

    def add(self, share: str, kind: str, items: NDArray[np.intp], best_Q: Floats) -> None:
        """Add the best confidence of the queries ``items``."""
        kept = self.found.setdefault((share, kind), {})
        for item, best in zip(items.tolist(), best_Q.tolist(), strict=True):
            kept.setdefault(item, []).append(best)

    def table(self) -> str:
        """A row for each kind of query, with the share at or above each line."""
        head = "| score | queries | " + " | ".join(f"≥ {line}" for line in LINES) + " |"
        rows = [head, "|---|---" + "|---" * len(LINES) + "|"]
        for (share, kind), kept in self.found.items():
            cells = []
            for line in LINES:
                reached = np.array([np.mean(np.array(best) >= line) for best in kept.values()])
                cells.append(bootstrap(reached).scaled(100).text())
            rows.append(f"| {share} | {kind}, {len(kept)} | " + " | ".join(cells) + " |")
        return "\n".join(rows)


def best_confidences(background_nM: Floats, items_NM: Floats, queries_QM: Floats, share: float) -> Floats:
    """The confidence of each query's best hit, by the code of the service."""
    fitted = fit(background_nM, [items_NM], share=share)
    return np.array([fitted.of(query_M, items_NM).max() for query_M in queries_QM])


def ask_features(path: Path, repetitions: int, seed: int) -> Asked:
    """Random splits of paired features: 40 % library, 30 % background, 30 % absent."""
    videos, texts = (unit(np.asarray(side, np.float32)) for side in np.load(path))
    count, asked = len(videos), Asked()
    for repetition in range(repetitions):
        order = np.random.default_rng([seed, repetition]).permutation(count)
        library, background, absent = np.split(order, [int(0.4 * count), int(0.7 * count)])
        first = np.argmax(texts[library] @ videos[library].T, axis=1) == np.arange(len(library))
        for name, share in SHARES.items():
            present_Q = best_confidences(texts[background], videos[library], texts[library], share)
            asked.add(name, "present", library, present_Q)
            asked.add(name, "present and found first", library[first], present_Q[first])
            absent_Q = best_confidences(texts[background], videos[library], texts[absent], share)
            asked.add(name, "absent", absent, absent_Q)
    return asked


def ask_demo(folder: Path, count: int) -> Asked:
    """The demo's library: its own captions, short ones, captions of other clips, everyday texts, typed nonsense."""
    from model.demo.captions import captions_of, describe_briefly
    from model.demo.scene import make_scene
    from model.encoder import load_encoder
    from service.demo import prepare

    store = prepare(folder, count, say=print)
    encoder = load_encoder("demo", device="cpu")
    with StoreReader.open(store, fingerprint=encoder.fingerprint) as reader:
        correction = reader.correction
        items_NM = correction.base_rows(reader.segment_embeddings(reader.segment_ids()), "video")

        def rows(texts: list[str]) -> Floats:
            return correction.base_rows(encoder.encode_texts(texts), "text")

        absent = [captions_of(make_scene(0, "test", n), 0, n)[0] for n in range(count, 2 * count)]
        queries = {
            "present, full caption": rows([captions_of(make_scene(0, "test", n), 0, n)[0] for n in range(count)]),
            "present, short caption": rows(
                [describe_briefly(make_scene(0, "test", n), np.random.default_rng(n)) for n in range(count)]
            ),
            "absent clip, full caption": rows(absent),
            "typed nonsense": rows(list(TYPED)),
        }
        texts = background_texts()
        background_nM = rows(list(texts))
    asked = Asked()
    nonsense = np.arange(len(texts)) >= len(everyday_and_nonsense()[0])
    for name, share in SHARES.items():
        for kept, left_out in _halves(len(texts)):
            for kind, rows_QM in queries.items():
                best_Q = best_confidences(background_nM[kept], items_NM, rows_QM, share)
                asked.add(name, kind, np.arange(len(rows_QM)), best_Q)
            best_Q = best_confidences(background_nM[kept], items_NM, background_nM[left_out], share)
            for kind, chosen in (("everyday text, left out", ~nonsense), ("random letters, left out", nonsense)):
                asked.add(name, kind, left_out[chosen[left_out]], best_Q[chosen[left_out]])
    return asked


def _halves(count: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    even, odd = np.arange(0, count, 2), np.arange(1, count, 2)
    yield even, odd
    yield odd, even


def main() -> None:
    """Measure what is named and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, nargs="*", default=[], help=".npy of shape (2, N, D): videos, texts")
    parser.add_argument("--demo", type=Path, help="folder of the demo")
    parser.add_argument("--count", type=int, default=300, help="clips of the demo")
    parser.add_argument("--repetitions", type=int, default=40, help="splits of a features file")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not arguments.features and arguments.demo is None:
        parser.error("name --features FILE or --demo FOLDER")
    for path in arguments.features:
        print(f"{path.name}\n\n{ask_features(path, arguments.repetitions, arguments.seed).table()}\n", flush=True)
    if arguments.demo is not None:
        print(f"demo, {arguments.count} clips\n\n{ask_demo(arguments.demo, arguments.count).table()}")


if __name__ == "__main__":
    main()
