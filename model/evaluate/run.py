"""Offline evaluation: every caption and every video of a set ranked, both directions, under a named protocol.

In: a loaded model and an encoded corpus. Out: one row of metrics per way of ranking, and what a reader must know to
compare them with others' figures. The parts: ``model.evaluate.corpus`` (encoding), ``model.evaluate.rank`` (scores),
``model.evaluate.protocols`` (which ways there are), ``model.evaluate.measure`` (from scores to metrics),
``model.evaluate.table`` (tables, JSON). Their names are importable from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from model.config import EMCLConfig, ModelConfig
from model.encoder import Encoder
from model.evaluate.corpus import Corpus, Floats, emcl_variants, encode_corpus, with_emcl
from model.evaluate.measure import BankRows, MetricRules, Row, measure, rows_of
from model.evaluate.protocols import PROTOCOLS, Protocol, ways_of
from model.evaluate.query_bank import QueryBank
from model.evaluate.rank import (
    REFERENCE_BLOCK,
    Ranked,
    Scores,
    fill_behind,
    fill_scores,
    rank_by_map,
    rerank,
    rerank_videos,
    stage_one,
    with_dual_softmax,
)
from model.evaluate.table import report, table

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


def evaluate_rows(encoder: Encoder, corpus: Corpus, settings: EvaluationSettings) -> Iterator[Row]:
    """Measure every way of ranking of a protocol: plain, with dual softmax, and with QB-Norm if there is a bank."""
    bank = None
    if settings.bank is not None:
        text_BD = encoder.encode_texts(settings.bank.texts)
        bank = BankRows(text_BD=text_BD, beta=settings.bank.beta, top=settings.bank.top)
    temperature = encoder.config.search.dual_softmax_temperature
    for way in ways_of(encoder, corpus, settings.protocol, candidates=settings.candidates):
        yield from rows_of(way, corpus, bank=bank, temperature=temperature, rules=settings.rules)
        del way  # so that its matrices are gone before the next one's are made


def evaluate_features(
    encoder: Encoder, corpus: Corpus, *, candidates: int = CANDIDATES, protocol: Protocol = "per-query"
) -> list[Row]:
    """Measure every way of ranking on encoded videos and captions; each once more with dual softmax."""
    return list(evaluate_rows(encoder, corpus, EvaluationSettings(protocol=protocol, candidates=candidates)))


def deviations(
    config: ModelConfig, settings: EvaluationSettings, *, multi_sentence: bool, videos_lost: int = 0
) -> list[str]:
    """Say in words all that differs from the released evaluation of EMCL-Net, which published figures come from."""
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
    found.append("EMCL's state is that of the checkpoint, where the released code draws it anew in every process")
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
