"""Calibrating hub and paired bases: which strength, weight and order rank held-out pairs best, and is it beyond chance?

In: an encoded validation corpus, and what else may be fitted on (pairs, bank texts). Out: settings, and a comparison
with the ranking without EMCL, video by video; ``run_bases`` writes the choice into a store or beside a checkpoint.

Cross-validation is nested. Videos are cut into folds; a fold is ranked among itself by bases that were fitted on the
other folds. Which setting ranks it was chosen on the other folds alone, by the same procedure within them; so neither
fit nor choice has seen what decides. One setting serves both directions, by the mean of their reciprocal ranks. The
correction is kept only if the sign test over videos says that it gains beyond chance.

Shape suffixes: V videos, T captions, W the two ways, D channels.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from model.arrays import unit_rows
from model.data.dataset import VideoTextSet
from model.data.registry import open_for_evaluation
from model.data.validation import data_digest, open_for_choosing
from model.emcl.correction import Correction, CorrectionSettings, Order, save_settings
from model.emcl.diagnostics import effective_rank
from model.emcl.em import FrozenMap
from model.emcl.paired import PairedBases, PairStatistics
from model.encoder import Encoder, correction_path, load_encoder
from model.evaluate.corpus import Corpus, Floats
from model.evaluate.query_bank import open_bank
from model.evaluate.rank import rank_corrected
from model.evaluate.run import encode_corpus
from model.options import CalibrateOptions
from model.study.calibrate import Comparison, compare_video_ranks
from model.study.per_video_ranks import VideoRanks, ranks_of
from model.study.significance import folds_of

PAIRS_PER_RANK = 5
"""Paired bases of fewer pairs than this many times the effective rank of the features are noise."""

ORDERS: tuple[Order, ...] = ("rerank", "stage1")

_ORDER_NAMES = {"rerank": "the rerank", "stage1": "stage 1"}
STORE_FILE, STORE_MARK = "correction.npz", "catalogue.db"
"""What a store keeps the choice in, and what shows that a folder is one (``indexer.store.bank``, ``generation``)."""


@dataclass(frozen=True, kw_only=True)
class BasesGrid:
    """Values to try: regularisations and weights of paired bases, numbers and strengths of hub bases."""

    regularisations: tuple[float, ...] = (0.03, 0.3, 1.0)
    weights: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4, 1.0, 3.0)
    hub_bases: tuple[int, ...] = (16, 64, 128)
    strengths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)

    @classmethod
    def quick(cls) -> BasesGrid:
        """A coarse grid."""
        return cls(regularisations=(1.0,), weights=(0.0, 0.2, 1.0), hub_bases=(128,), strengths=(0.0, 0.5))

    def settings(self) -> list[Setting]:
        """All combinations that differ; the one without any correction first."""
        found = dict.fromkeys(
            Setting(
                regularisation=regularisation if weight else 0.0,
                weight=weight,
                hub_bases=count if strength else 0,
                strength=strength,
            )
            for weight, strength, regularisation, count in itertools.product(
                self.weights, self.strengths, self.regularisations, self.hub_bases
            )
        )
        off = Setting(regularisation=0.0, weight=0.0, hub_bases=0, strength=0.0)
        return [off, *(setting for setting in found if setting != off)]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One point of the grid; irrelevant values are 0."""

    regularisation: float
    weight: float
    hub_bases: int
    strength: float

    @property
    def is_off(self) -> bool:
        """Whether it corrects nothing."""
        return self.weight == 0 and self.strength == 0

    def describe(self) -> str:
        """In a table."""
        paired = f"paired w {self.weight:g}, regularisation {self.regularisation:g}" if self.weight else ""
        hubs = f"hubs a {self.strength:g}, {self.hub_bases} bases" if self.strength else ""
        return "; ".join(filter(None, (paired, hubs))) or "without EMCL"


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """What may be fitted on besides the corpus: raw rows of labelled pairs, and of a bank of texts."""

    pair_text_ND: Floats
    pair_video_ND: Floats
    bank_ND: Floats

    @classmethod
    def none(cls, dim: int) -> Material:
        """Nothing but the corpus."""
        empty = np.zeros((0, dim), np.float32)
        return cls(pair_text_ND=empty, pair_video_ND=empty, bank_ND=empty)


@dataclass(frozen=True, kw_only=True, eq=False)
class BasesCalibration:
    """What was measured and chosen. ``held_out`` compares with pooling and cosine alone."""

    chosen: Setting
    order: Order
    kept: bool
    settings: CorrectionSettings
    held_out: Comparison
    baseline: VideoRanks
    corrected: VideoRanks
    fold_choices: list[str]
    tried: int
    pairs: int
    effective_rank: float

    def text(self) -> str:
        """For people."""
        held = self.held_out
        lines = [
            f"{self.tried} settings, {len(self.baseline.reciprocal_ranks)} videos, {self.pairs} pairs; chosen in the "
            f"folds: {', '.join(f'{choice} ({n})' for choice, n in _counted(self.fold_choices))}.",
            f"Held out against no EMCL: {held.ranks.wins} videos better, {held.ranks.losses} worse, sign test p = "
            f"{held.ranks.p:.2g}; MRR {held.reciprocal_difference.text(2, sign=True)}, R@1 text → video "
            f"{held.first_difference[0].text(1, sign=True)} (p = {held.first[0].p:.2g}), video → text "
            f"{held.first_difference[1].text(1, sign=True)} (p = {held.first[1].p:.2g}) points.",
        ]
        if self.pairs < PAIRS_PER_RANK * self.effective_rank:
            lines.append(
                f"Few pairs: {self.pairs} for an effective rank of {self.effective_rank:.0f}; paired bases want at "
                f"least {PAIRS_PER_RANK * self.effective_rank:.0f}."
            )
        if self.kept:
            lines.append(f"Kept: {self.chosen.describe()}, ranked by {_ORDER_NAMES[self.order]}.")
        else:
            lines.append(f"Left off: {self.chosen.describe()} does not gain beyond chance.")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """For JSON and for the record."""
        return {
            "chosen": vars(self.chosen),
            "order": self.order,
            "kept": self.kept,
            "held_out": self.held_out.as_dict(),
            "fold_choices": self.fold_choices,
            "settings_tried": self.tried,
            "pairs": self.pairs,
            "effective_rank": round(self.effective_rank, 1),
            "r1_without_emcl": (100 * self.baseline.first_VW.mean(axis=0)).tolist(),
            "r1_corrected": (100 * self.corrected.first_VW.mean(axis=0)).tolist(),
        }


def calibrate_bases(
    encoder: Encoder,
    corpus: Corpus,
    grid: BasesGrid,
    *,
    material: Material | None = None,
    source: str = "",
    folds: int = 5,
    seed: int = 0,
    progress: Callable[[Iterator[Any], int], Iterator[Any]] = lambda steps, _: steps,
) -> BasesCalibration:
    """Choose by nested cross-validation, and fit the choice on everything. Raises ``ValueError`` for too few videos.

    ``progress`` wraps the steps, of which it is given the number.
    """
    material = material or Material.none(encoder.dim)
    fold_V = folds_of(len(corpus.mask_VF), folds, seed=seed)
    settings = grid.settings()
    jobs = [(outer, inner) for outer in range(folds) for inner in range(folds)]
    found: dict[tuple[int, int], list[float]] = {}
    for outer, inner in progress(iter(jobs), len(jobs)):
        # outer == inner stands for the whole: that fold is left out, and its ranking decides on the final setting
        fit_V = (fold_V != outer) & (fold_V != inner)
        found[outer, inner] = [
            video_ranks.mean_reciprocal
            for video_ranks in _stage_1(encoder, corpus, material, fit_V, fold_V == inner, settings)
        ]
    baseline, corrected, choices = _held_out(encoder, corpus, material, fold_V, settings, found)
    means = np.mean([found[fold, fold] for fold in range(folds)], axis=0)
    chosen = settings[int(np.argmax(means))]
    order = _better_order(corrected)
    held_out = compare_video_ranks(baseline, corrected[order], seed=seed)
    kept = held_out.is_better and not chosen.is_off
    text_TD, video_TD, _, _ = fitting_rows(encoder, corpus, material, np.ones(len(fold_V), bool))
    final = CorrectionSettings(hub_strength=0.0)
    if kept:
        final = replace(_settings_of(chosen, text_TD, video_TD, source), order=order)
    calibration = BasesCalibration(
        chosen=chosen,
        order=order,
        kept=kept,
        settings=final,
        held_out=held_out,
        baseline=baseline,
        corrected=corrected[order],
        fold_choices=choices,
        tried=len(settings),
        pairs=len(text_TD),
        effective_rank=effective_rank(torch.from_numpy(unit_rows(text_TD) - unit_rows(text_TD).mean(axis=0))),
    )
    final = replace(calibration.settings, record=json.dumps({**calibration.as_dict(), "source": source}))
    return replace(calibration, settings=final)


def _held_out(
    encoder: Encoder,
    corpus: Corpus,
    material: Material,
    fold_V: NDArray[np.intp],
    settings: Sequence[Setting],
    found: dict[tuple[int, int], list[float]],
) -> tuple[VideoRanks, dict[Order, VideoRanks], list[str]]:
    """Every fold ranked without EMCL and, in both orders, by the setting that was best within the other folds."""
    folds = int(fold_V.max()) + 1
    videos = len(fold_V)
    baseline = _blank(videos)
    corrected = {order: _blank(videos) for order in ORDERS}
    choices = []
    for outer in range(folds):
        means = np.mean([found[outer, inner] for inner in range(folds) if inner != outer], axis=0)
        chosen = settings[int(np.argmax(means))]
        choices.append(chosen.describe())
        inside_V = fold_V == outer
        part = take(corpus, inside_V)
        _put(baseline, inside_V, ranked_by(encoder, part, _neutral(encoder)))
        correction = _fit(encoder, corpus, material, fold_V != outer, chosen)
        for order in ORDERS:
            _put(corrected[order], inside_V, ranked_by(encoder, part, replace(correction, order=order)))
    return baseline, corrected, choices


def _blank(videos: int) -> VideoRanks:
    return VideoRanks(reciprocal_VW=np.zeros((videos, 2)), first_VW=np.zeros((videos, 2)))


def _put(whole: VideoRanks, inside_V: NDArray[np.bool_], part: VideoRanks) -> None:
    whole.reciprocal_VW[inside_V] = part.reciprocal_VW
    whole.first_VW[inside_V] = part.first_VW


def _better_order(corrected: dict[Order, VideoRanks]) -> Order:
    """Stage 1 only where it beats the rerank beyond chance: the rerank also shows the moment."""
    return "stage1" if compare_video_ranks(corrected["rerank"], corrected["stage1"]).is_better else "rerank"


def _neutral(encoder: Encoder) -> Correction:
    return Correction(frozen=FrozenMap.neutral(encoder.dim), pooling=encoder.pooling)


def ranked_by(encoder: Encoder, corpus: Corpus, correction: Correction) -> VideoRanks:
    """Rank a corpus among itself, all of it candidates."""
    count = max(len(corpus.mask_VF), len(corpus.text_TD))
    assert encoder.config.emcl.beta == 0, "bases are compared with no EMCL: load the model with strength 0"
    ranked, _ = rank_corrected(encoder, corpus, correction, candidates=count)
    return ranks_of(ranked, corpus).per_video()


def _stage_1(
    encoder: Encoder,
    corpus: Corpus,
    material: Material,
    fit_V: NDArray[np.bool_],
    rank_V: NDArray[np.bool_],
    settings: Sequence[Setting],
) -> Iterator[VideoRanks]:
    """Stage 1 of some videos among themselves under every setting, fitted on others; each fit is made once."""
    part = take(corpus, rank_V)
    text_TD, video_TD, bank_ND, videos_ND = fitting_rows(encoder, corpus, material, fit_V)
    statistics = PairStatistics.of(text_TD, video_TD)
    paired: dict[float, PairedBases] = {}
    fitted: dict[tuple[float, float, int], Correction] = {}
    for setting in settings:
        own = None
        if setting.weight:
            if setting.regularisation not in paired:
                paired[setting.regularisation] = statistics.fit(
                    bases=128, regularisation=setting.regularisation, weight=1.0
                )
            own = paired[setting.regularisation].weighing(setting.weight)
        key = (setting.regularisation, setting.weight, setting.hub_bases)
        if key not in fitted:
            fitted[key] = Correction.fit(
                FrozenMap.neutral(encoder.dim),
                CorrectionSettings(
                    hub_strength=1.0 if setting.strength else 0.0, hub_bases=max(1, setting.hub_bases), paired=own
                ),
                banks={"videos": (bank_ND, ""), "captions": (videos_ND, "")},
                pooling=encoder.pooling,
            )
        whole = fitted[key]
        hubs = {side: replace(bases, strength=setting.strength) for side, bases in whole.hubs.items()}
        yield ranked_by(encoder, part, replace(whole, hubs=hubs, order="stage1"))


def fitting_rows(
    encoder: Encoder, corpus: Corpus, material: Material, fit_V: NDArray[np.bool_]
) -> tuple[Floats, Floats, Floats, Floats]:
    """Texts and videos of the pairs, texts of the bank, and videos of the bank: of the chosen videos and the rest."""
    part = take(corpus, fit_V)
    pooled_VD = encoder.pool(part.features_VFD, part.mask_VF)
    return (
        np.concatenate([part.text_TD, material.pair_text_ND]),
        np.concatenate([pooled_VD[part.video_of_text_T], material.pair_video_ND]),
        np.concatenate([part.text_TD, material.bank_ND]),
        np.concatenate([pooled_VD, material.pair_video_ND]),
    )


def _settings_of(setting: Setting, text_TD: Floats, video_TD: Floats, source: str) -> CorrectionSettings:
    paired = None
    if setting.weight:
        paired = PairedBases.fit(
            text_TD, video_TD, regularisation=setting.regularisation, weight=setting.weight, source=source
        )
    return CorrectionSettings(hub_strength=setting.strength, hub_bases=max(1, setting.hub_bases), paired=paired)


def _fit(
    encoder: Encoder, corpus: Corpus, material: Material, fit_V: NDArray[np.bool_], setting: Setting
) -> Correction:
    text_TD, video_TD, bank_ND, videos_ND = fitting_rows(encoder, corpus, material, fit_V)
    return Correction.fit(
        FrozenMap.neutral(encoder.dim),
        _settings_of(setting, text_TD, video_TD, ""),
        banks={"videos": (bank_ND, ""), "captions": (videos_ND, "")},
        pooling=encoder.pooling,
    )


def take(corpus: Corpus, rows_V: NDArray[np.bool_]) -> Corpus:
    """Some videos of a corpus with their captions."""
    kept_T = rows_V[corpus.video_of_text_T]
    places_V = np.cumsum(rows_V) - 1
    return Corpus(
        text_TD=corpus.text_TD[kept_T],
        features_VFD=corpus.features_VFD[rows_V],
        mask_VF=corpus.mask_VF[rows_V],
        video_of_text_T=places_V[corpus.video_of_text_T[kept_T]],
    )


def _counted(names: Sequence[str]) -> list[tuple[str, int]]:
    return [(name, list(names).count(name)) for name in dict.fromkeys(names)]


def run_bases(options: CalibrateOptions) -> str:
    """Choose and write settings; return the text for the terminal."""
    target = None if options.dry_run else target_of(options)
    chosen = open_for_choosing(options.data, options.split, allow_missing=options.allow_missing)
    encoder = load_encoder(options.model, pretrained=options.pretrained, device=options.device)
    encoder.net.set_emcl(encoder.config.emcl.model_copy(update={"beta": 0.0}))  # what bases are compared with
    corpus = encode_corpus(encoder, chosen.clips)
    found = calibrate_bases(
        encoder,
        corpus,
        BasesGrid.quick() if options.quick else BasesGrid(),
        material=_material(options, encoder, chosen),
        source=chosen.name,
        folds=options.folds,
        seed=options.seed,
        progress=_bar,
    )
    digest = data_digest(chosen.clips)
    facts = {"data": chosen.name, "data_digest": digest, "split": options.split, "seed": options.seed}
    if options.json_file is not None:
        options.json_file.write_text(
            json.dumps({**facts, "model": encoder.fingerprint, **found.as_dict()}, indent=2) + "\n", encoding="utf-8"
        )
    if target is None:
        return f"{found.text()}\ndry run: nothing was written"
    return f"{found.text()}\n{_write(target, found, facts, encoder, options)}"


def target_of(options: CalibrateOptions) -> Path:
    """The file for the choice. Raises ``ValueError`` if there is none, before any work."""
    if options.store is not None:
        if not (options.store / STORE_MARK).exists():
            raise ValueError(f"--store {options.store} holds no store; make one with `emcl index build PATH --store …`")
        return options.store / STORE_FILE
    if options.model == "demo" or not Path(options.model).with_suffix(".safetensors").is_file():
        raise ValueError(
            f"--model {options.model} is not a checkpoint file, so a choice cannot be written beside it; pass --store "
            "STORE, which keeps it for that index, or --dry-run"
        )
    return correction_path(Path(options.model))


def _write(
    target: Path, found: BasesCalibration, facts: dict[str, Any], encoder: Encoder, options: CalibrateOptions
) -> str:
    record = json.dumps({**facts, **found.as_dict()})
    settings: CorrectionSettings = replace(found.settings, record=record, fingerprint=encoder.fingerprint)
    save_settings(target, settings)
    store = options.store or "STORE"
    return f"written: {target}\nPublish it with `emcl index rebuild --store {store}`, without decoding anything."


def _material(options: CalibrateOptions, encoder: Encoder, chosen: VideoTextSet) -> Material:
    """More pairs and texts to fit on. Raises ``ValueError`` if they hold what is to be ranked."""
    material, own = Material.none(encoder.dim), set(chosen.captions)
    if options.query_bank is not None:
        bank = open_bank(str(options.query_bank), None)
        if shared := bank.shared_with(own):
            raise ValueError(
                f"{shared} captions of --query-bank {options.query_bank} are in --data too, so the choice would be "
                "made on what it was fitted on; take them out of the bank"
            )
        material = replace(material, bank_ND=encoder.encode_texts(bank.texts))
    if options.pairs is not None:
        pairs = open_for_evaluation(options.pairs, "train", allow_missing=options.allow_missing)
        files = [{clip.path.resolve() for clip in clips} for clips in (pairs.clips, chosen.clips)]
        if shared := len(files[0] & files[1]):
            raise ValueError(f"{shared} videos of --pairs {options.pairs} are in --data too; take them out")
        corpus = encode_corpus(encoder, pairs.clips)
        pooled_VD = encoder.pool(corpus.features_VFD, corpus.mask_VF)
        material = replace(
            material,
            pair_text_ND=corpus.text_TD,
            pair_video_ND=pooled_VD[corpus.video_of_text_T],
            bank_ND=np.concatenate([material.bank_ND, corpus.text_TD]),
        )
    return material


def _bar(steps: Iterator[Any], count: int) -> Iterator[Any]:
    return iter(tqdm(steps, total=count, desc="calibrate", unit="fold"))
