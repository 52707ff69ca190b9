"""Evaluation of exported features, whatever computed them: ``emcl evaluate --features``, ``emcl features export``.

In: a features file (``model.heads.features``). Out: the table of ``emcl evaluate``, with and without EMCL as an
out-of-the-box inference module, under a named protocol that says which rows share an EM pass:

    per-query            a query and its candidates, as ranked without EMCL; independent of other queries
    blocks N             N texts x N videos; a score depends on who shares the block
    blocks N, aligned    N matching pairs, their corrected rows kept for all pairs (MMT's released evaluation, N 32). It
                         leaks: a pass sees which texts and videos belong together
    whole                everything at once
    frozen               a linear map that is fitted on everything, then applied row by row

Features of kind ``frames`` also have the protocols of ``emcl evaluate --data``, with the same figures.

Shape suffixes: T texts, V videos, Q queries, N items, B queries of a bank, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.config import EMCLConfig, ModelConfig, PoolingConfig, SearchConfig
from model.data.registry import open_for_evaluation
from model.emcl.em import EMCL
from model.encoder import Encoder, Scorer, load_encoder
from model.evaluate.corpus import Corpus, encode_corpus
from model.evaluate.hubness import QB_NORM_BETA, QB_NORM_TOP, BankNorm, DualSoftmax
from model.evaluate.measure import MetricRules, Row, measure
from model.evaluate.paper_results import paper_results_for
from model.evaluate.rank import Ranked, best_columns
from model.evaluate.run import EvaluationSettings, evaluate_rows, facts_of, write_reports
from model.evaluate.table import Facts, conditions, table
from model.heads.base import Correction, Head, HeadKind
from model.heads.experts import ExpertsHead
from model.heads.features import FeaturesError, FeatureSet, read_features, write_features
from model.heads.frames import FramesHead
from model.heads.mixture import MixtureHead
from model.heads.pooled import PooledHead
from model.heads.tokens import TokensHead
from model.net import ScoringNet
from model.options import EvaluateOptions, ExportOptions
from model.runtime.choose import RuntimeChoice

FeatureProtocol = Literal["per-query", "reference", "frozen", "blocks", "whole"]

# What the sources state for EMCL as an inference module (CLIP2Video: the released README; MMT: the paper's joint
# values); no source states them for the others, which use CLIP2Video's.
_CLIP2VIDEO = EMCLConfig.reference(num_bases=7, iterations=10, sigma=0.1, beta=4.0)
INFERENCE_SETTINGS: dict[HeadKind, EMCLConfig] = {
    "pooled": _CLIP2VIDEO,
    "tokens": _CLIP2VIDEO,
    "mixture": _CLIP2VIDEO,
    "experts": EMCLConfig.reference(num_bases=64, iterations=5, sigma=1.0, beta=3.0),
    "frames": EMCLConfig.reference(),
}
_CHANNEL = EMCLConfig(mode="channel", sigma=0.1, beta=0.1)  # our arithmetic at the strength that was measured most
_WHOLE_ELEMENTS = 1 << 30  # pooled pairs of kind frames at once: 4 GiB in float32


@dataclass(frozen=True, kw_only=True)
class SharedPass:
    """Which rows share an EM pass; ``name`` is what reports print."""

    protocol: Literal["per-query", "blocks", "whole", "frozen"]
    block: int = 32
    aligned: bool = False
    candidates: int = 100

    @property
    def name(self) -> str:
        """The protocol in words."""
        if self.protocol != "blocks":
            return self.protocol
        return f"blocks {self.block}{', aligned' if self.aligned else ''}"


def head_of(features: FeatureSet) -> Head[Any]:
    """Return the head of a features file, with the settings that the file states."""
    if features.kind == "frames":
        return FramesHead(_pooling(features))
    if features.kind == "mixture":
        return MixtureHead(share=float(features.settings.get("share", 0.5)))
    if features.kind == "tokens":
        return TokensHead()
    return ExpertsHead() if features.kind == "experts" else PooledHead()


def _pooling(features: FeatureSet) -> PoolingConfig:
    return PoolingConfig.model_validate(features.settings.get("pooling", {}))


def combine(videos: FeatureSet, texts: FeatureSet) -> FeatureSet:
    """Return the videos of one set with the texts of another, unpaired: what a query bank is scored by.

    Raises ``FeaturesError`` for sets of different kinds or sizes, or similarities that exist for known pairs alone.
    """
    if videos.kind != texts.kind:
        raise FeaturesError(f"the query bank holds features of kind {texts.kind}, the set of kind {videos.kind}")
    if "extra_similarity" in videos.arrays or "extra_similarity" in texts.arrays:
        raise FeaturesError(
            "extra_similarity is known for a file's own pairs; a query bank needs second_video and second_text"
        )
    sides = (("video", "second_video"), videos), (("text", "second_text"), texts)
    arrays = {name: array for starts, part in sides for name, array in part.arrays.items() if name.startswith(starts)}
    if arrays["video"].shape[-1] != arrays["text"].shape[-1]:
        raise FeaturesError(
            f"texts have {arrays['text'].shape[-1]} channels, videos {arrays['video'].shape[-1]}: a query bank must be "
            "encoded by the same model"
        )
    return replace(
        videos, arrays=arrays, video_of_text_T=np.zeros(len(arrays["text"]), np.intp), video_ids=(), texts=()
    )


@torch.inference_mode()
def scores_of(features: FeatureSet, emcl: EMCL | None, how: SharedPass) -> Ranked:
    """Score all pairs of a set; pairs that are not candidates get -inf. ``emcl`` None leaves the pass out."""
    head, batch = head_of(features), features.batch()
    plain_TV = _without_emcl(head, batch)
    if emcl is None:
        return _both_ways(plain_TV)
    if how.protocol == "per-query":
        return _per_query(head, batch, emcl, plain_TV, how.candidates)
    if how.protocol == "frozen":
        _refuse_large(head, batch)
        frozen = _frozen(emcl, head.rows(batch))
        return _both_ways(head.similarity(head.corrected(batch, frozen)))
    if how.protocol == "whole":
        _refuse_large(head, batch)
        return _both_ways(head.similarity(head.corrected(batch, emcl)))
    return _both_ways(
        _aligned(features, head, emcl, how.block) if how.aligned else _blocks(head, batch, emcl, how.block)
    )


def _without_emcl(head: Head[Any], batch: Any) -> Tensor:
    if not isinstance(head, FramesHead):
        return head.similarity(batch)
    step = max(1, _WHOLE_ELEMENTS // (4 * batch.features_VFD[:, 0].numel()))
    everything = torch.arange(batch.videos)
    parts = _split(batch.texts, step)
    return torch.cat([head.similarity(batch.take(part, everything)) for part in parts])


def _refuse_large(head: Head[Any], batch: Any) -> None:
    if isinstance(head, FramesHead) and batch.texts * batch.features_VFD[:, 0].numel() > _WHOLE_ELEMENTS:
        raise ValueError(
            f"a pass over all {batch.texts} x {batch.videos} pooled pairs does not fit into memory; use --protocol "
            "per-query or reference"
        )


def _split(count: int, size: int) -> list[Tensor]:
    return [torch.arange(start, min(start + size, count)) for start in range(0, count, size)]


def _both_ways(scores_TV: Tensor) -> Ranked:
    scores = scores_TV.float().numpy()
    return Ranked(text_to_video_TV=scores, video_to_text_VT=scores.T)


def _per_query(head: Head[Any], batch: Any, emcl: Correction, plain_TV: Tensor, candidates: int) -> Ranked:
    plain = plain_TV.numpy()
    to_videos, to_texts = np.full(plain.shape, -np.inf, np.float32), np.full(plain.T.shape, -np.inf, np.float32)
    for text, ids in enumerate(best_columns(plain, candidates)):
        part = batch.take(torch.tensor([text]), torch.from_numpy(ids))
        to_videos[text, ids] = head.similarity(head.corrected(part, emcl))[0].numpy()
    for video, ids in enumerate(best_columns(plain.T, candidates)):
        part = batch.take(torch.from_numpy(ids), torch.tensor([video]))
        to_texts[video, ids] = head.similarity(head.corrected(part, emcl))[:, 0].numpy()
    return Ranked(text_to_video_TV=to_videos, video_to_text_VT=to_texts)


def _blocks(head: Head[Any], batch: Any, emcl: Correction, block: int) -> Tensor:
    rows = [
        torch.cat(
            [
                head.similarity(head.corrected(batch.take(texts, videos), emcl))
                for videos in _split(batch.videos, block)
            ],
            dim=1,
        )
        for texts in _split(batch.texts, block)
    ]
    return torch.cat(rows)


def _aligned(features: FeatureSet, head: Head[Any], emcl: Correction, block: int) -> Tensor:
    """MMT's evaluation: a pass for each loader batch of matching pairs, then all pairs of the corrected rows."""
    if features.kind in ("frames", "mixture") or features.multi_sentence:
        raise ValueError(
            "aligned blocks need one text for each video, and a head whose corrected rows can be kept: pooled, tokens "
            "or experts; leave --aligned out"
        )
    batch: Any = features.batch()
    parts = [head.corrected(batch.take(pairs, pairs), emcl) for pairs in _split(batch.texts, block)]
    first = parts[0]
    joined = {
        name: None if value is None else torch.cat([getattr(part, name) for part in parts])
        for name, value in vars(first).items()
    }
    return head.similarity(type(first)(**joined))


def _frozen(emcl: EMCL, rows: Tensor) -> Correction:
    if rows.dim() == 2:
        return emcl.freeze(rows).apply
    maps = [emcl.freeze(rows_ND) for rows_ND in rows]
    return lambda given: torch.stack([one.apply(rows_ND) for one, rows_ND in zip(maps, given, strict=True)])


def rows_of_features(
    features: FeatureSet,
    how: SharedPass,
    *,
    rules: MetricRules = "corrected",
    temperature: float = 0.01,
    bank: FeatureSet | None = None,
    bank_beta: float = QB_NORM_BETA,
    bank_top: int = QB_NORM_TOP,
) -> Iterator[Row]:
    """Measure without EMCL and with each of ``emcl_of``: as it is, with dual softmax, with QB-Norm both ways."""
    dim = features.arrays["text"].shape[-1]
    plain = scores_of(features, None, how)
    for config in [None, *emcl_of(features)]:
        emcl = None if config is None else _emcl(features, dim, config)
        ranked = plain if emcl is None else scores_of(features, emcl, how)
        behind = plain if emcl is not None and how.protocol == "per-query" else None
        name = "without EMCL" if config is None else f"EMCL {config.mode}, beta {config.beta:g}"
        yield measure(name, ranked, features, behind=behind, rules=rules)
        dual = tuple(DualSoftmax.fit(side, temperature) for side in (ranked.text_to_video_TV, ranked.video_to_text_VT))
        yield measure(
            f"{name} + dual softmax",
            ranked,
            features,
            behind=behind,
            rules=rules,
            rescorers=(dual[0], dual[1]),
            transductive=True,
        )
        if bank is not None:
            norms = _bank_norms(features, bank, emcl, how, beta=bank_beta, top=bank_top)
            yield measure(f"{name} + QB-Norm", ranked, features, behind=behind, rules=rules, rescorers=norms)


def emcl_of(features: FeatureSet) -> list[EMCLConfig]:
    """Return the settings that are measured: the file's own, or the sources' for its kind, and our mode's."""
    own = features.settings.get("emcl")
    first = INFERENCE_SETTINGS[features.kind] if own is None else EMCLConfig.model_validate(own)
    return [first] if first == _CHANNEL else [first, _CHANNEL]


def _emcl(features: FeatureSet, dim: int, config: EMCLConfig) -> EMCL:
    emcl = EMCL(dim, config).eval()
    state = features.arrays.get("emcl_state")
    if state is not None and features.settings.get("emcl") == config.model_dump(mode="json"):
        if state.shape != tuple(emcl.state.shape):
            raise FeaturesError(f"emcl_state has shape {state.shape}, its settings say {tuple(emcl.state.shape)}")
        emcl.state.copy_(torch.from_numpy(state))
    return emcl


def _bank_norms(
    features: FeatureSet, bank: FeatureSet, emcl: EMCL | None, how: SharedPass, *, beta: float, top: int
) -> tuple[BankNorm, BankNorm]:
    """Score the bank's texts against our videos, and its videos against our texts, as the set's own were scored."""
    texts = scores_of(combine(features, bank), emcl, how).text_to_video_TV
    videos = scores_of(combine(bank, features), emcl, how).video_to_text_VT
    return tuple(  # type: ignore[return-value]
        BankNorm.fit([_floored(scores)], scores.shape[1], beta=beta, top=min(top, scores.shape[1]))
        for scores in (texts, videos)
    )


def _floored(scores_QN: NDArray[Any]) -> NDArray[Any]:
    """What was no candidate counts with the lowest score among those that were."""
    finite_QN = np.isfinite(scores_QN)
    lowest_Q1 = np.where(finite_QN, scores_QN, np.inf).min(axis=1, keepdims=True)
    return np.where(finite_QN, scores_QN, lowest_Q1)


def run(options: EvaluateOptions) -> str:
    """Evaluate ``options.features``, write the files that are asked for, and return what the terminal shows."""
    assert options.features is not None
    _refuse_unread(options)
    features = read_features(options.features, kind=options.head)
    rules: MetricRules = options.metric_rules
    if rules == "reference" and features.settings.get("data") == "msvd":
        rules = "reference-msvd"
    if features.kind == "frames" and options.protocol in ("per-query", "reference", "frozen"):
        rows, facts = _as_our_own(features, options, rules)
    else:
        rows, facts = _by_head(features, options, rules)
    data, split = str(features.settings.get("data", "")), str(features.settings.get("split", ""))
    official = features.settings.get("official_videos")
    published = paper_results_for(data, split=split, official_videos=official if isinstance(official, int) else None)
    write_reports(options, rows, published, facts)
    lines = [*conditions(facts), "", table(rows, published)]
    if options.aligned:
        lines.append("aligned blocks leak: each pass saw which texts and videos belong together")
    return "\n".join(lines)


def _refuse_unread(options: EvaluateOptions) -> None:
    if options.candidates is not None and options.protocol != "per-query":
        raise ValueError(f"--candidates has no effect under protocol {options.protocol}; leave it out")
    if options.protocol != "blocks" and (options.aligned or options.block_size != 32):
        raise ValueError(f"--block-size and --aligned belong to --protocol blocks, not to {options.protocol}")


def _by_head(features: FeatureSet, options: EvaluateOptions, rules: MetricRules) -> tuple[list[Row], Facts]:
    if options.protocol == "reference":
        raise ValueError(
            "protocol reference is EMCL-Net's, for features of kind frames; use --protocol blocks --block-size 64 for "
            "CLIP2Video's released evaluation, or --block-size 32 --aligned for MMT's"
        )
    assert options.features is not None
    candidates = options.candidates or 100
    how = SharedPass(
        protocol=options.protocol, block=options.block_size, aligned=options.aligned, candidates=candidates
    )
    bank_file = None if options.query_bank is None else Path(options.query_bank)
    bank = None if bank_file is None else read_features(bank_file, kind=features.kind)
    rows = list(
        rows_of_features(
            features, how, rules=rules, bank=bank, bank_beta=options.query_bank_beta, bank_top=options.query_bank_top
        )
    )
    settings = features.settings
    facts = Facts(
        data=str(settings.get("data", options.features.name)),
        split=str(settings.get("split", "unnamed")),
        videos=len(features.arrays["video"]),
        videos_lost=int(settings.get("videos_lost", 0)),
        captions=len(features.video_of_text_T),
        multi_sentence=features.multi_sentence,
        fingerprint=str(settings.get("fingerprint", "unknown")),
        runtime=str(settings.get("label", "torch fp32")),
        emcl=emcl_of(features)[0].model_dump(mode="json"),
        protocol=f"{how.name}, head {features.kind}",
        metric_rules=rules,
        candidates=candidates if how.protocol == "per-query" else None,
        deviations=[f"head {features.kind} on exported features; EMCL as an inference module"],
        query_bank=None
        if bank is None or bank_file is None
        else {
            "source": bank_file.name,
            "queries": len(bank.video_of_text_T),
            "available": len(bank.video_of_text_T),
            "seed": 0,
            "beta": options.query_bank_beta,
            "top": options.query_bank_top,
            "shared": len(set(bank.texts) & set(features.texts)),
            "videos": len(bank.arrays["video"]),
        },
    )
    return rows, facts


def _as_our_own(features: FeatureSet, options: EvaluateOptions, rules: MetricRules) -> tuple[list[Row], Facts]:
    """What ``emcl evaluate --data`` measures, on the features that it would have computed."""
    if options.query_bank is not None:
        raise ValueError(
            f"--query-bank of features goes with --protocol blocks or whole for kind frames, not {options.protocol}"
        )
    assert options.features is not None
    scorer, corpus = scorer_of(features), corpus_of(features)
    own = scorer.config.search.candidates
    settings = EvaluationSettings(
        protocol=options.protocol,  # type: ignore[arg-type]
        candidates=own if options.candidates is None else options.candidates,
        rules=rules,
    )
    rows = list(evaluate_rows(scorer, corpus, settings))
    facts = facts_of(
        scorer,
        corpus,
        settings,
        data=str(features.settings.get("data", options.features.name)),
        split=str(features.settings.get("split", "unnamed")),
        videos_lost=int(features.settings.get("videos_lost", 0)),
    )
    return rows, facts


def scorer_of(features: FeatureSet, *, device: str = "cpu") -> Scorer:
    """Return what scores frame features as the model that they were exported from. Kind ``frames`` only."""
    if features.kind != "frames":
        raise FeaturesError(f"features of kind {features.kind} are scored by their head, not by an EMCL-Net")
    settings = features.settings
    config = ModelConfig(
        pooling=_pooling(features),
        frame_average=settings.get("frame_average", "mean"),
        emcl=emcl_of(features)[0],
        search=SearchConfig.model_validate(settings.get("search", {})),
    )
    net = ScoringNet(config, features.arrays["text"].shape[1])
    net.emcl = _emcl(features, net.embed_dim, config.emcl)
    runtime = RuntimeChoice.both(settings.get("runtime", "torch"), settings.get("precision", "fp32"), reason="exported")
    fingerprint = str(settings.get("fingerprint", "unknown"))
    return Scorer(net, fingerprint=fingerprint, device=torch.device(device), runtime=runtime)


def corpus_of(features: FeatureSet) -> Corpus:
    """Features of kind frames as a corpus of our own model."""
    return Corpus(
        text_TD=features.arrays["text"],
        features_VFD=features.arrays["video"],
        mask_VF=features.arrays["video_mask"],
        video_of_text_T=features.video_of_text_T,
    )


def export(options: ExportOptions) -> str:
    """Encode a set and write its features; returns what the terminal shows."""
    if options.output.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"--output {options.output} must end in .npz or .safetensors")
    chosen = open_for_evaluation(options.data, options.split, allow_missing=options.allow_missing)
    encoder = load_encoder(
        options.model,
        pretrained=options.pretrained,
        device=options.device,
        runtime="torch",
        precision="auto",
        emcl="configured",
    )
    corpus = encode_corpus(encoder, chosen.clips)
    facts = {
        "data": chosen.name,
        "split": chosen.split,
        "videos_lost": chosen.videos_lost,
        "official_videos": chosen.official_videos,
    }
    names = [clip.name for clip in chosen.clips]
    features = features_of(encoder, corpus, options.head, facts=facts, video_ids=names, texts=chosen.captions)
    write_features(options.output, features)
    return f"{len(names)} videos, {len(corpus.text_TD)} texts, kind {options.head}: {options.output}"


def features_of(
    encoder: Encoder,
    corpus: Corpus,
    kind: Literal["frames", "pooled"],
    *,
    facts: dict[str, Any],
    video_ids: Sequence[str] = (),
    texts: Sequence[str] = (),
) -> FeatureSet:
    """Return what ``emcl features export`` writes of an encoded corpus."""
    origin = {
        **facts,
        "fingerprint": encoder.fingerprint,
        "runtime": encoder.runtime.image.runtime,
        "precision": encoder.runtime.image.precision,
        "label": encoder.runtime.label,
    }
    if kind == "frames":
        arrays = {
            "video": corpus.features_VFD,
            "video_mask": corpus.mask_VF,
            "text": corpus.text_TD,
            "emcl_state": encoder.net.emcl.state.float().cpu().numpy(),
        }
        origin["frame_average"] = encoder.config.frame_average
        for name in ("pooling", "emcl", "search"):
            origin[name] = getattr(encoder.config, name).model_dump(mode="json")
    else:
        arrays = {"video": encoder.pool(corpus.features_VFD, corpus.mask_VF), "text": corpus.text_TD}
    return FeatureSet(
        kind=kind,
        arrays=arrays,
        video_of_text_T=corpus.video_of_text_T,
        video_ids=video_ids,
        texts=texts,
        logit_scale=float(encoder.net.clip.logit_scale.detach()),
        settings=origin,
    )
