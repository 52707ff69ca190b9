"""What ``emcl evaluate`` does: open a set, encode it, measure it under a protocol, write the reports.

In: the command's options. Out: the text for the terminal, and files. Errors of the user are ``ValueError`` or
``OSError``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from model.data.sources import open_for_evaluation
from model.data.video_text import Split, VideoTextSet
from model.encoder import Encoder, load_encoder
from model.evaluate.corpus import Corpus, encode_corpus
from model.evaluate.hubness import QB_NORM_BETA, QB_NORM_TOP
from model.evaluate.measure import MetricRules, Row
from model.evaluate.paper_results import PublishedRow, published_for
from model.evaluate.query_bank import DEFAULT_SIZE, QueryBank, open_bank
from model.evaluate.run import EvaluationSettings, Protocol, deviations, evaluate_rows
from model.evaluate.table import Facts, conditions, markdown, report, table
from model.runtime.choose import PrecisionWish, RuntimeWish


@dataclass(frozen=True, kw_only=True)
class BankOptions:
    """Where QB-Norm's bank comes from (``train``, or a file), and its settings."""

    source: str
    size: int = DEFAULT_SIZE
    seed: int = 0
    beta: float = QB_NORM_BETA
    top: int = QB_NORM_TOP


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """The options of ``emcl evaluate``. ``candidates`` None stands for the checkpoint's own."""

    data: Path
    split: Split = "test"
    allow_missing: bool = False
    model: str = "demo"
    pretrained: str | None = None
    device: str = "auto"
    runtime: RuntimeWish = "torch"
    precision: PrecisionWish = "auto"
    exports: Path | None = None
    protocol: Protocol = "per-query"
    candidates: int | None = None
    rules: Literal["corrected", "reference"] = "corrected"
    bank: BankOptions | None = None
    json_file: Path | None = None
    markdown_file: Path | None = None


def run(request: EvaluateRequest) -> str:
    """Evaluate, write the files that are asked for, and return what the terminal shows.

    Raises ``ValueError`` for options that contradict each other, before anything is decoded.
    """
    if request.candidates is not None and request.protocol != "per-query":
        raise ValueError(
            f"--candidates {request.candidates} has no effect under protocol {request.protocol}, which scores every "
            "pair; leave it out"
        )
    chosen = open_for_evaluation(request.data, request.split, allow_missing=request.allow_missing)
    bank = _bank(request)
    encoder = load_encoder(
        request.model,
        pretrained=request.pretrained,
        device=request.device,
        runtime=request.runtime,
        precision=request.precision,
        exports=request.exports,
    )
    corpus = encode_corpus(encoder, chosen.clips)
    settings = _settings(request, encoder, chosen, bank)
    rows = list(evaluate_rows(encoder, corpus, settings))
    published = published_for(chosen.name, split=chosen.split, official_videos=chosen.official_videos)
    facts = _facts(encoder, corpus, chosen, settings)
    _write(request, rows, published, facts)
    return "\n".join([*conditions(facts), "", table(rows, published), *_warnings(facts)])


def _bank(request: EvaluateRequest) -> QueryBank | None:
    if request.bank is None:
        return None
    asked = request.bank
    return open_bank(asked.source, request.data, size=asked.size, seed=asked.seed, beta=asked.beta, top=asked.top)


def _settings(
    request: EvaluateRequest, encoder: Encoder, chosen: VideoTextSet, bank: QueryBank | None
) -> EvaluationSettings:
    rules: MetricRules = request.rules
    if rules == "reference" and chosen.name == "msvd":
        rules = "reference-msvd"
    own = encoder.config.search.candidates
    candidates = own if request.candidates is None else request.candidates
    return EvaluationSettings(protocol=request.protocol, candidates=candidates, rules=rules, bank=bank)


def _facts(encoder: Encoder, corpus: Corpus, chosen: VideoTextSet, settings: EvaluationSettings) -> Facts:
    return Facts(
        data=chosen.name,
        split=chosen.split,
        videos=len(chosen.clips),
        videos_lost=chosen.videos_lost,
        captions=len(corpus.text_TD),
        multi_sentence=corpus.multi_sentence,
        fingerprint=encoder.fingerprint,
        runtime=encoder.runtime.label,
        emcl=encoder.config.emcl.model_dump(mode="json"),
        protocol=settings.protocol,
        metric_rules=settings.rules,
        candidates=settings.candidates if settings.protocol == "per-query" else None,
        deviations=deviations(
            encoder.config, settings, multi_sentence=corpus.multi_sentence, videos_lost=chosen.videos_lost
        ),
        query_bank=None if settings.bank is None else _bank_facts(settings.bank, chosen),
    )


def _bank_facts(bank: QueryBank, chosen: VideoTextSet) -> dict[str, Any]:
    facts = asdict(replace(bank, texts=()))
    del facts["texts"]
    return {**facts, "queries": len(bank.texts), "shared": bank.shared_with(chosen.captions)}


def _write(request: EvaluateRequest, rows: Sequence[Row], published: Sequence[PublishedRow], facts: Facts) -> None:
    if request.json_file is not None:
        text = json.dumps(report(rows, published, **facts.as_dict()), indent=2)
        request.json_file.write_text(text + "\n", encoding="utf-8")
    if request.markdown_file is not None:
        request.markdown_file.write_text(markdown(rows, published, facts), encoding="utf-8")


def _warnings(facts: Facts) -> list[str]:
    lines = [f"differs from the released evaluation in {len(facts.deviations)} points (--json or --markdown list them)"]
    if facts.videos_lost:
        lines.append(
            f"{facts.videos_lost} videos of the {facts.split} split are missing: not comparable with the whole set"
        )
    return lines
