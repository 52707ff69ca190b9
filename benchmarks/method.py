"""Which form of EMCL gains, and by how much: published, hub bases, paired bases, both, beside other remedies for hubs.

    python -m benchmarks.method --features clip.npy --repetitions 10      # (2, N, D): videos, texts; row i is a pair
    python -m benchmarks.method --demo model/assets/demo.safetensors runs/seed-1/model.safetensors …
    emcl train --config configs/demo.yaml --output runs/seed-1            # another seed: 23 minutes on two cores

Of a ``--features`` file, random halves: one is gallery and queries, the other bank and labelled pairs; both halves take
both parts. Of a ``--demo`` checkpoint, generated test clips are ranked; validation clips are the pairs and the videos'
bank, training captions the texts' bank. Nothing is chosen on what is ranked: all settings are the defaults. Differences
are to the cosine, item by item: mean over repetitions (or seeds), 95 % bootstrap interval and sign test over items.
Dual softmax needs all queries at once, which a service never has: it is marked transductive.

Legend: R runs (a half of a repetition, or a seed), I items, W the two ways, N rows, D channels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.config import EMCLConfig, PoolingConfig
from model.emcl.correction import Correction, CorrectionSettings
from model.emcl.em import EMCL, FrozenMap
from model.emcl.fast_pass import Factored, corrected_cosines
from model.emcl.hub import unit
from model.emcl.paired import PairedBases
from model.evaluate.hubness import BankNorm, dual_softmax
from model.study.significance import bootstrap, compare

Floats = NDArray[Any]
Pair = tuple[Floats, Floats]

NEIGHBOURS, NNN_STRENGTH = 16, 0.5
CANDIDATES = 100
CHANNEL = EMCLConfig(beta=0.1)
"""What every store applied before EMCL was off by default."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Raw rows to rank, row i of both being a pair; labelled pairs and the banks of both directions."""

    text_ID: Floats
    video_ID: Floats
    pairs: Pair
    text_bank_ND: Floats
    video_bank_ND: Floats

    @property
    def cosines(self) -> Pair:
        """Scores of texts x videos and of videos x texts."""
        scores = unit(self.text_ID) @ unit(self.video_ID).T
        return scores, scores.T


def published(config: EMCLConfig, *, per_query: bool) -> Callable[[Split], Pair]:
    """EM over channels: the frozen map alone, or with the pass over each query's candidates behind it."""

    def score(split: Split) -> Pair:
        emcl = EMCL(split.text_ID.shape[1], config).eval()
        rows = torch.from_numpy(np.concatenate([split.video_ID, split.text_bank_ND]).astype(np.float32))
        frozen = emcl.freeze(rows)
        text, video = (torch.from_numpy(side.astype(np.float32)) for side in (split.text_ID, split.video_ID))
        first = (frozen.apply(text) @ frozen.apply(video).T).numpy()
        if not per_query:
            return first, first.T
        return _reranked(emcl, text, video, first), _reranked(emcl, video, text, first.T)

    return score


@torch.inference_mode()
def _reranked(emcl: EMCL, asking: torch.Tensor, asked: torch.Tensor, first_QN: Floats) -> Floats:
    """The pass over each query and its candidates; items that are not candidates keep their order behind them."""
    scores = first_QN - 10.0
    for q in range(len(asking)):
        chosen = np.sort(np.argsort(-first_QN[q], kind="stable")[:CANDIDATES])
        rows = torch.cat([asked[chosen], asking[q : q + 1]])[None]
        scores[q, chosen] = corrected_cosines(emcl, rows, None, Factored.cosines_to_last)[0].numpy()
    return scores


def bases(*, hubs: bool, paired: bool) -> Callable[[Split], Pair]:
    """Our forms, by the code of the service."""

    def score(split: Split) -> Pair:
        found = PairedBases.fit(*split.pairs) if paired else None
        banks = {"videos": (split.text_bank_ND, "texts"), "captions": (split.video_bank_ND, "videos")} if hubs else {}
        neutral = FrozenMap.neutral(split.text_ID.shape[1])
        correction = Correction.fit(
            neutral,
            CorrectionSettings(paired=found),
            banks=banks,  # type: ignore[arg-type]
            pooling=PoolingConfig(),
        )
        return (
            correction.queries(split.text_ID, "text", "videos") @ correction.items(split.video_ID, "videos").T,
            correction.queries(split.video_ID, "video", "captions") @ correction.items(split.text_ID, "captions").T,
        )

    return score


def qb_norm(split: Split) -> Pair:
    """Dynamic inverted softmax, beta 20, top 1."""
    found = []
    for scores, bank, items in (
        (split.cosines[0], split.text_bank_ND, split.video_ID),
        (split.cosines[1], split.video_bank_ND, split.text_ID),
    ):
        norm = BankNorm.fit([unit(bank) @ unit(items).T], len(items))
        found.append(norm.rescore(scores))
    return found[0], found[1]


def nnn(split: Split) -> Pair:
    """Nearest-neighbour normalisation (2410.24114): less the mean of an item's nearest in the bank."""

    def bias(bank: Floats, items: Floats) -> Floats:
        scores = unit(bank) @ unit(items).T
        nearest = np.sort(scores, axis=0)[-min(NEIGHBOURS, len(scores)) :]
        return np.asarray(NNN_STRENGTH * nearest.mean(axis=0))

    to_videos, to_texts = split.cosines
    return to_videos - bias(split.text_bank_ND, split.video_ID), to_texts - bias(split.video_bank_ND, split.text_ID)


def transductive(split: Split) -> Pair:
    """Dual softmax over the very queries that are ranked."""
    to_videos, to_texts = split.cosines
    return dual_softmax(to_videos), dual_softmax(to_texts)


METHODS: dict[str, Callable[[Split], Pair]] = {
    "cosine": lambda split: split.cosines,
    "EMCL reference, beta 3, frozen": published(EMCLConfig.reference(), per_query=False),
    "EMCL reference, beta 3, per query": published(EMCLConfig.reference(), per_query=True),
    "EMCL channel, beta 0.1, frozen": published(CHANNEL, per_query=False),
    "EMCL channel, beta 0.1, per query": published(CHANNEL, per_query=True),
    "hub bases": bases(hubs=True, paired=False),
    "paired bases": bases(hubs=False, paired=True),
    "paired + hub bases": bases(hubs=True, paired=True),
    "QB-Norm": qb_norm,
    "NNN": nnn,
    "dual softmax (transductive)": transductive,
}


def halves(path: Path, repetitions: int, seed: int) -> Iterator[tuple[NDArray[np.intp], Split]]:
    """Random halves of a features file, each as the ranked one; with the numbers of its items."""
    rows = np.load(path)
    if rows.ndim != 3 or rows.shape[0] != 2 or rows.shape[1] < 8:
        raise SystemExit(f"{path} has shape {rows.shape}, expected (2, N >= 8, D): videos and texts, row i a pair")
    videos, texts = rows.astype(np.float32)
    rng = np.random.default_rng(seed)
    for _ in range(repetitions):
        order = rng.permutation(len(texts))
        half = len(order) // 2
        for ranked, other in ((order[:half], order[half:]), (order[half:], order[:half])):
            yield (
                ranked,
                Split(
                    text_ID=texts[ranked],
                    video_ID=videos[ranked],
                    pairs=(texts[other], videos[other]),
                    text_bank_ND=texts[other],
                    video_bank_ND=videos[other],
                ),
            )


def demo(checkpoint: Path, work: Path, clips: int, captions: int) -> Iterator[tuple[NDArray[np.intp], Split]]:
    """One demo model: its features of test and validation clips are kept in ``work``."""
    cache = work / f"{checkpoint.resolve().parent.name}-{checkpoint.stem}-{clips}-{captions}.npz"
    if not cache.exists():
        np.savez(cache, **_demo_features(checkpoint, work, clips, captions))  # type: ignore[arg-type]
    with np.load(cache) as arrays:
        found = dict(arrays)
    yield (
        np.arange(clips),
        Split(
            text_ID=found["test_text"],
            video_ID=found["test_video"],
            pairs=(found["val_text"], found["val_video"]),
            text_bank_ND=found["train_text"],
            video_bank_ND=found["val_video"],
        ),
    )


def _demo_features(checkpoint: Path, work: Path, clips: int, captions: int) -> dict[str, Floats]:
    from model.data.manifest import read_manifest
    from model.demo.captions import captions_of
    from model.demo.corpus import write_corpus
    from model.demo.scene import make_scene
    from model.encoder import load_encoder
    from model.evaluate.corpus import encode_corpus

    encoder = load_encoder(str(checkpoint), device="cpu")
    found: dict[str, Floats] = {}
    seen: set[str] = set()
    for split in ("test", "val"):
        folder = work / f"{split}-{clips}"
        if not (folder / "captions.jsonl").exists():
            write_corpus(folder, split=split, count=clips, seed=0, captions=1, workers=1)
        listed = read_manifest(folder / "captions.jsonl")
        corpus = encode_corpus(encoder, listed)
        found[f"{split}_text"] = corpus.text_TD
        found[f"{split}_video"] = encoder.pool(corpus.features_VFD, corpus.mask_VF)
        seen |= {text for clip in listed for text in clip.captions}
    scenes = (captions_of(make_scene(0, "train", number), 0, number)[0] for number in range(2 * captions))
    texts = [text for text in dict.fromkeys(scenes) if text not in seen][:captions]
    found["train_text"] = encoder.encode_texts(texts)
    return found


def first_hits(scores: Pair) -> Floats:
    """Whether each item's match comes first (I, 2): text to video, video to text. A tie is none."""
    both = []
    for way in scores:
        own = np.diag(way)[:, None]
        both.append(((way >= own).sum(axis=1) == 1).astype(float))
    return np.stack(both, axis=1)


def occurrences(scores: Floats, top: int = 10) -> float:
    """Skewness of how often each item is among the first ``top`` of the queries: how strong hubs are."""
    best = np.argpartition(-scores, min(top, scores.shape[1] - 1), axis=1)[:, :top]
    counts = np.bincount(best.ravel(), minlength=scores.shape[1]).astype(float)
    return float(((counts - counts.mean()) ** 3).mean() / max(counts.std() ** 3, 1e-12))


def measure(runs: Iterator[tuple[NDArray[np.intp], Split]]) -> dict[str, Any]:
    """First hits of every method: sums over runs by item, and skewness of occurrences."""
    sums: dict[str, dict[int, list[Floats]]] = {name: {} for name in METHODS}
    skews: dict[str, list[list[float]]] = {name: [] for name in METHODS}
    count = 0
    for items, split in runs:
        count += 1
        for name, method in METHODS.items():
            scores = method(split)
            for item, hits in zip(items, first_hits(scores), strict=True):
                sums[name].setdefault(int(item), []).append(hits)
            skews[name].append([occurrences(np.asarray(way)) for way in scores])
    means = {name: np.stack([np.mean(by[item], axis=0) for item in sorted(by)]) for name, by in sums.items()}
    return {"runs": count, "hits": means, "skew": {name: np.mean(found, axis=0) for name, found in skews.items()}}


def table(found: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """The rows as Markdown and as JSON."""
    head = "| method | R@1 t→v | difference | p | R@1 v→t | difference | p | skew of 10-occurrences |"
    lines, rows = [head, "|---" * 8 + "|"], []
    base = found["hits"]["cosine"]
    for name, hits in found["hits"].items():
        cells, row = [name], {"method": name, "r1": (100 * hits.mean(axis=0)).tolist()}
        for way in (0, 1):
            difference = hits[:, way] - base[:, way]
            interval, test = bootstrap(difference).scaled(100), compare(difference)
            cells.append(f"{100 * hits[:, way].mean():.1f}")
            cells += ["", ""] if name == "cosine" else [interval.text(sign=True), f"{test.p:.2g}"]
            row[("text_to_video", "video_to_text")[way]] = {**vars(interval), "p": test.p}
        skew = found["skew"][name]
        lines.append("| " + " | ".join([*cells, f"{skew[0]:.1f} / {skew[1]:.1f}"]) + " |")
        rows.append({**row, "skew": skew.tolist()})
    return "\n".join(lines), rows


def main() -> None:
    """Measure what is named, print the tables, write them and JSON to ``--output``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, nargs="*", default=[], help=".npy of shape (2, N, D): videos, texts")
    parser.add_argument("--demo", type=Path, nargs="*", default=[], help="demo checkpoints, one for each seed")
    parser.add_argument("--repetitions", type=int, default=10, help="of halves of a features file")
    parser.add_argument("--clips", type=int, default=1500, help="test clips, and validation clips, of the demo corpus")
    parser.add_argument("--captions", type=int, default=5000, help="training captions in the bank of the demo corpus")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("var/method"), help="where clips and features are kept")
    arguments = parser.parse_args()
    if not arguments.features and not arguments.demo:
        parser.error("name --features FILE or --demo CHECKPOINT")
    arguments.work.mkdir(parents=True, exist_ok=True)
    sections, report = [], {}
    for path in arguments.features:
        found = measure(halves(path, arguments.repetitions, arguments.seed))
        text, report[str(path)] = table(found)
        sections.append(f"{path.name}: {found['runs']} halves of {len(found['hits']['cosine']) // 2} items\n\n{text}")
        print(sections[-1] + "\n", flush=True)
    if arguments.demo:
        splits = (
            run for path in arguments.demo for run in demo(path, arguments.work, arguments.clips, arguments.captions)
        )
        found = measure(splits)
        text, report["demo"] = table(found)
        sections.append(f"demo: {found['runs']} seeds, {arguments.clips} test clips, stage 1\n\n{text}")
        print(sections[-1] + "\n", flush=True)
    (arguments.work / "method.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    (arguments.work / "method.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
