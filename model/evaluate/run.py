"""``emcl evaluate``: open a set, encode it, rank every caption and video under a named protocol, write the reports.

In: the command's options, or a loaded model and an encoded corpus (``evaluate_features``). Out: one row of metrics per
way of ranking, with the facts that a comparison with other figures needs. The parts: ``model.evaluate.corpus``
(encoding), ``rank`` (scores), ``protocols`` (which ways there are), ``measure`` (from scores to metrics) and ``table``
(tables, JSON); their names are importable from here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from model.config import EMCLConfig, ModelConfig
from model.data.dataset import VideoTextSet
from model.data.registry import open_for_evaluation
from model.emcl.correction import Correction, CorrectionSettings, Side
from model.emcl.em import FrozenMap
from model.encoder import Encoder, Scorer, load_encoder
from model.evaluate.corpus import Corpus, Floats, emcl_variants, encode_corpus, with_emcl
from model.evaluate.measure import BankRows, MetricRules, Row, measure, rows_of
from model.evaluate.paper_results import PaperResult, paper_results_for
from model.evaluate.protocols import PROTOCOLS, Protocol, ways_of
from model.evaluate.query_bank import QueryBank, open_bank
from model.evaluate.rank import (
    REFERENCE_BLOCK,
    Ranked,
    Scores,
    fill_behind,
    fill_scores,
    rank_by_map,
    rank_corrected,
    rerank,
    rerank_videos,
    stage_one,
    with_dual_softmax,
)
from model.evaluate.table import Facts, conditions, markdown, report, table
from model.heads.features import FeatureSet, read_features
from model.options import EvaluateOptions

__all__ = [
    "CANDIDATES",
    "PROTOCOLS",
    "Corpus",
    "EvaluationSettings",
    "Floats",
    "MetricRules",
    "Protocol",
    "Ranked",
    "Row",
    "Scores",
    "deviations",
    "emcl_variants",
    "encode_corpus",
    "evaluate_features",
    "evaluate_rows",
    "fill_behind",
    "fill_scores",
    "measure",
    "rank_by_map",
    "report",
    "rerank",
    "rerank_videos",
    "stage_one",
    "table",
    "with_dual_softmax",
    "with_emcl",
]

CANDIDATES = 100  # the service's default


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How a set is measured. ``candidates`` matters to ``per-query`` alone; ``bank`` is for the rows with QB-Norm."""

    protocol: Protocol = "per-query"
    candidates: int = CANDIDATES
    rules: MetricRules = "corrected"
    bank: QueryBank | None = None
    video_bank: FeatureSet | None = None


def evaluate_rows(encoder: Scorer, corpus: Corpus, settings: EvaluationSettings) -> Iterator[Row]:
    """Measure every way of ranking of a protocol: plain, with dual softmax, and with QB-Norm if there is a bank.

    With a bank, or a checkpoint that has calibrated bases, rows of hub and paired bases follow. A bank needs an
    ``Encoder``, which encodes its texts.
    """
    bank = None
    if settings.bank is not None:
        if not isinstance(encoder, Encoder):
            raise ValueError("a query bank of texts needs the model that encodes them, not its exported features")
        text_BD = encoder.encode_texts(settings.bank.texts)
        videos = settings.video_bank
        bank = BankRows(
            text_BD=text_BD,
            beta=settings.bank.beta,
            top=settings.bank.top,
            features_BFD=None if videos is None else videos.arrays["video"],
            mask_BF=None if videos is None else videos.arrays["video_mask"],
        )
    temperature = encoder.config.search.dual_softmax_temperature
    for way in ways_of(encoder, corpus, settings.protocol, candidates=settings.candidates):
        yield from rows_of(way, corpus, bank=bank, temperature=temperature, rules=settings.rules)
        del way  # so that its matrices are gone before the next one's are made
    if settings.protocol != "reference":
        yield from _corrected_rows(encoder, corpus, settings, bank)


def _corrected_rows(
    encoder: Scorer, corpus: Corpus, settings: EvaluationSettings, bank: BankRows | None
) -> Iterator[Row]:
    """Rows of hub bases (of the bank), of the checkpoint's paired bases, and of both, as a store applies them.

    Without videos in the bank, hub bases correct no captions: such a row ranks videos alone.
    """
    own = encoder.calibrated or CorrectionSettings()
    banks: dict[Side, tuple[Floats, str]] = {}
    if bank is not None:
        banks["videos"] = bank.text_BD, f"{len(bank.text_BD):,} texts"
        if bank.features_BFD is not None and bank.mask_BF is not None:
            banks["captions"] = encoder.pool(bank.features_BFD, bank.mask_BF), f"{len(bank.mask_BF):,} videos"
    for paired, hubs in ((False, True), (True, False), (True, True)):
        if (hubs and not banks) or (paired and own.paired is None):
            continue
        applied = replace(own, paired=own.paired if paired else None, hub_strength=own.hub_strength if hubs else 0.0)
        correction = Correction.fit(
            FrozenMap.neutral(encoder.dim), applied, banks=banks if hubs else {}, pooling=encoder.pooling
        )
        if not correction.has_own_pass:  # the checkpoint's strength of hub bases is 0
            continue
        reranked, first = rank_corrected(encoder, corpus, correction, candidates=settings.candidates)
        if settings.protocol == "frozen":
            row = measure(f"stage 1, {_bases_named(correction)}", first, corpus, rules=settings.rules)
        else:
            row = measure(_bases_named(correction), reranked, corpus, behind=first, rules=settings.rules)
        ranks_texts = "captions" in banks or not hubs
        yield row if ranks_texts else replace(row, video_to_text=None)


def _bases_named(correction: Correction) -> str:
    """What tables call a correction by bases."""
    parts = []
    if correction.paired is not None:
        parts.append(f"paired bases, w {correction.paired.weight:g}")
    if correction.hubs:
        parts.append(f"hub bases, a {correction.strength:g}")
    return "EMCL " + " + ".join(parts) + (", ranked by stage 1" if correction.order == "stage1" else "")


def evaluate_features(
    encoder: Encoder, corpus: Corpus, *, candidates: int = CANDIDATES, protocol: Protocol = "per-query"
) -> list[Row]:
    """Measure every way of ranking on encoded videos and captions; each once more with dual softmax."""
    return list(evaluate_rows(encoder, corpus, EvaluationSettings(protocol=protocol, candidates=candidates)))


def deviations(
    config: ModelConfig, settings: EvaluationSettings, *, multi_sentence: bool, videos_lost: int = 0
) -> list[str]:
    """List what differs from the released evaluation of EMCL-Net, which published figures come from."""
    return [
        *_of_protocol(settings),
        *_of_model(config),
        *_of_rules(settings.rules, multi_sentence),
        *([f"{videos_lost} videos are missing: another test set"] if videos_lost else []),
    ]


def _of_protocol(settings: EvaluationSettings) -> list[str]:
    blocks = f"blocks of {REFERENCE_BLOCK} texts x {REFERENCE_BLOCK} videos"
    if settings.protocol == "reference":
        return []
    if settings.protocol == "frozen":
        return [
            f"stage 1 alone, under a frozen EMCL map, instead of text-conditioned pooling and EM passes over {blocks}"
        ]
    return [
        f"one EM pass per query over its {settings.candidates} candidates of stage 1 instead of {blocks}",
        "frame features of searched videos rounded to fp16, as in an index",
    ]


def _of_model(config: ModelConfig) -> list[str]:
    found = []
    released, own = EMCLConfig.reference(), config.emcl
    for name in ("mode", "num_bases", "iterations", "sigma", "beta"):
        if getattr(own, name) != getattr(released, name):
            found.append(f"emcl.{name} of the checkpoint is {getattr(own, name)}, released {getattr(released, name)}")
    if config.pooling.mask != "after":
        found.append("padded frames are masked before the softmax over frames, released after it")
    if config.pooling.temperature != 3:
        found.append(f"pooling.temperature is {config.pooling.temperature:g}, released 3")
    if config.search.dual_softmax_temperature != 0.01:
        found.append(f"dual softmax has temperature {config.search.dual_softmax_temperature:g}, released 0.01")
    found.append(
        "EMCL's state is that of the checkpoint, where the released code initialises it randomly in every process"
    )
    found.append("frames are those shown at the sampled times, where the released code counts frames by a rounded rate")
    return found


def _of_rules(rules: MetricRules, multi_sentence: bool) -> list[str]:
    found = []
    if rules == "corrected":
        found.append("ties take the average rank, where the released code counts every tied place")
        if multi_sentence:
            found.append("the median rank lies between the middle two, where the released code takes the lower one")
    if multi_sentence:
        found.append("rows with dual softmax: the released code leaves it out for sets with several sentences a video")
    return found


def run(options: EvaluateOptions) -> str:
    """Evaluate ``options.data``, write the files that are asked for, and return what the terminal shows.

    Raises ``ValueError`` for options that contradict each other, before anything is decoded.
    """
    if options.candidates is not None and options.protocol != "per-query":
        raise ValueError(
            f"--candidates {options.candidates} has no effect under protocol {options.protocol}, which scores every "
            "pair; leave it out"
        )
    assert options.data is not None
    chosen = open_for_evaluation(options.data, options.split, allow_missing=options.allow_missing)
    bank = _bank(options)
    encoder = load_encoder(
        options.model,
        pretrained=options.pretrained,
        device=options.device,
        runtime=options.runtime,
        precision=options.precision,
        exports=options.exports,
        emcl="configured",
    )
    corpus = encode_corpus(encoder, chosen.clips)
    settings = replace(_settings(options, encoder, chosen, bank), video_bank=_video_bank(options, encoder))
    rows = list(evaluate_rows(encoder, corpus, settings))
    published = paper_results_for(chosen.name, split=chosen.split, official_videos=chosen.official_videos)
    facts = facts_of(
        encoder,
        corpus,
        settings,
        data=chosen.name,
        split=chosen.split,
        videos_lost=chosen.videos_lost,
        query_bank=None if settings.bank is None else _bank_facts(settings, chosen),
    )
    write_reports(options, rows, published, facts)
    return "\n".join([*conditions(facts), "", table(rows, published), *_warnings(facts)])


def _bank(options: EvaluateOptions) -> QueryBank | None:
    if options.query_bank is None:
        return None
    return open_bank(
        options.query_bank,
        options.data,
        size=options.query_bank_size,
        seed=options.query_bank_seed,
        beta=options.query_bank_beta,
        top=options.query_bank_top,
    )


def _video_bank(options: EvaluateOptions, encoder: Encoder) -> FeatureSet | None:
    if options.video_bank is None:
        return None
    videos = read_features(options.video_bank, kind="frames")
    made_by = videos.settings.get("fingerprint")
    if made_by != encoder.fingerprint:
        raise ValueError(
            f"{options.video_bank} was exported from model {str(made_by)[:12]}, --model is "
            f"{encoder.fingerprint[:12]}; export the bank's videos with this model"
        )
    return videos


def _settings(
    options: EvaluateOptions, encoder: Encoder, chosen: VideoTextSet, bank: QueryBank | None
) -> EvaluationSettings:
    rules: MetricRules = options.metric_rules
    if rules == "reference" and chosen.name == "msvd":
        rules = "reference-msvd"
    own = encoder.config.search.candidates
    candidates = own if options.candidates is None else options.candidates
    return EvaluationSettings(
        protocol=options.protocol,  # type: ignore[arg-type] # others need --features
        candidates=candidates,
        rules=rules,
        bank=bank,
    )


def facts_of(
    scorer: Scorer,
    corpus: Corpus,
    settings: EvaluationSettings,
    *,
    data: str,
    split: str,
    videos_lost: int,
    query_bank: dict[str, Any] | None = None,
) -> Facts:
    """The circumstances of an evaluation by ``settings``, for its report."""
    return Facts(
        data=data,
        split=split,
        videos=len(corpus.features_VFD),
        videos_lost=videos_lost,
        captions=len(corpus.text_TD),
        multi_sentence=corpus.multi_sentence,
        fingerprint=scorer.fingerprint,
        runtime=scorer.runtime.label,
        emcl=scorer.config.emcl.model_dump(mode="json"),
        protocol=settings.protocol,
        metric_rules=settings.rules,
        candidates=settings.candidates if settings.protocol == "per-query" else None,
        deviations=deviations(scorer.config, settings, multi_sentence=corpus.multi_sentence, videos_lost=videos_lost),
        query_bank=query_bank,
    )


def _bank_facts(settings: EvaluationSettings, chosen: VideoTextSet) -> dict[str, Any]:
    bank, videos = settings.bank, settings.video_bank
    assert bank is not None
    facts = asdict(replace(bank, texts=()))
    del facts["texts"]
    counts = {"queries": len(bank.texts), "shared": bank.shared_with(chosen.captions)}
    return {**facts, **counts, "videos": 0 if videos is None else len(videos.arrays["video"])}


def write_reports(
    options: EvaluateOptions, rows: Sequence[Row], published: Sequence[PaperResult], facts: Facts
) -> None:
    """Write the report as JSON and as Markdown, where ``options`` name files."""
    if options.json_file is not None:
        text = json.dumps(report(rows, published, **facts.as_dict()), indent=2)
        options.json_file.write_text(text + "\n", encoding="utf-8")
    if options.markdown_file is not None:
        options.markdown_file.write_text(markdown(rows, published, facts), encoding="utf-8")


def _warnings(facts: Facts) -> list[str]:
    lines = [f"differs from the released evaluation in {len(facts.deviations)} points (--json or --markdown list them)"]
    if facts.videos_lost:
        lines.append(
            f"{facts.videos_lost} videos of the {facts.split} split are missing: not comparable with the whole set"
        )
    return lines
