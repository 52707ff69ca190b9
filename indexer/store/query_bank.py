"""QB-Norm's bank of a store: how similar its segments are to a fixed set of other queries (reference §4.4).

In: an open store, its model, and texts (captions that were trained on). Out: for each kind of score that a search can
rank by, and for each segment, the log-sum over the texts of exp(beta · score), and whether it is among the best of some
text. A score may only be compared with a bank of its own kind: ``frozen`` (stage 1), ``none`` (pooling by the text) and
``emcl`` (the EM pass over a text's candidates; what is not a candidate counts with the text's lowest score).

The bank is one file beside the generations, ``query_bank.npz``, replaced as a whole. It is keyed by segment ids, which
are never reused, so it outlives the generation that it was computed on; a segment that it does not know takes the
median of those that it knows, until it is computed again.

Legend: B texts of the bank, N segments, n segments of a block, C candidates, F frames, D channels.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from indexer.errors import Damaged
from model.durable import digest_of_arrays, write_atomically
from model.evaluate.hubness import BankNorm, ColumnLogSums

if TYPE_CHECKING:
    from indexer.store.reader import StoreReader
    from model.config import ModelConfig
    from model.emcl.correction import Correction
    from model.encoder import Encoder
    from model.evaluate.query_bank import QueryBank

Kind = Literal["frozen", "none", "emcl"]
KINDS: tuple[Kind, ...] = get_args(Kind)

QUERY_BANK = "query_bank.npz"
BLOCK_SCORES = 1 << 24  # scores of all texts and a block of segments: 64 MiB
TEXTS_AT_ONCE = 16

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredBank:
    """Statistics of a bank for the segments ``ids_N``, ascending. ``digest`` names this very bank.

    ``scoring`` is the part of the model's configuration that decides scores: another one needs another bank.
    """

    ids_N: Ids
    norms: Mapping[Kind, BankNorm]
    fingerprint: str
    generation: str
    scoring: str
    source: str
    candidates: int
    digest: str = ""

    @cached_property
    def medians(self) -> dict[Kind, float]:
        """The median log-sum of each kind: what is assumed of a segment that the bank does not know."""
        return {kind: float(np.median(norm.log_sums_N)) for kind, norm in self.norms.items()}

    def for_candidates(self, kind: Kind, ids_C: Ids) -> BankNorm:
        """The statistics of some segments; -1 and what the bank does not know get the median, and are no hubs."""
        norm = self.norms[kind]
        places_C = np.minimum(np.searchsorted(self.ids_N, ids_C), len(self.ids_N) - 1)
        known_C = self.ids_N[places_C] == ids_C
        return BankNorm(
            log_sums_N=np.where(known_C, norm.log_sums_N[places_C], self.medians[kind]),
            activated_N=known_C & norm.activated_N[places_C],
            queries=norm.queries,
            beta=norm.beta,
            top=norm.top,
        )


def scoring_of(config: ModelConfig, correction: Correction | None = None) -> str:
    """What decides scores besides the weights: the settings of pooling and EMCL, and paired bases, as JSON."""
    facts: dict[str, object] = {
        "emcl": config.emcl.model_dump(),
        "pooling": config.pooling.model_dump(exclude_none=True),
    }
    if correction is not None and correction.paired is not None:
        facts["paired"] = digest_of_arrays(correction.paired.to_arrays())
    return json.dumps(facts, sort_keys=True)


def compute_bank(reader: StoreReader, encoder: Encoder, bank: QueryBank) -> StoredBank:
    """Score the bank's texts against every segment of a store, in blocks. Raises ``ValueError`` for an empty store."""
    ids_N = reader.segment_ids()
    if len(ids_N) == 0:
        raise ValueError(f"{reader.path} holds no segment to compute a query bank for; index videos first")
    text_BD = encoder.encode_texts(bank.texts)
    top = min(bank.top, len(ids_N))
    candidates = min(encoder.config.search.candidates, len(ids_N))
    norms: dict[Kind, BankNorm] = {
        "frozen": _fit(_frozen_blocks(reader, encoder, text_BD, ids_N), text_BD, len(ids_N), bank.beta, top),
        "none": _fit(_pooled_blocks(reader, encoder, text_BD, ids_N), text_BD, len(ids_N), bank.beta, top),
        "emcl": _fit_candidates(reader, encoder, text_BD, ids_N, candidates, bank.beta, top),
    }
    return StoredBank(
        ids_N=ids_N,
        norms=norms,
        fingerprint=encoder.fingerprint,
        generation=reader.manifest.generation,
        scoring=scoring_of(encoder.config, reader.correction),
        source=bank.source,
        candidates=candidates,
    )


def write_bank(store: Path, bank: StoredBank) -> str:
    """Write a bank into its store, wholly or not at all. Returns its digest."""
    facts = {
        "fingerprint": bank.fingerprint,
        "generation": bank.generation,
        "scoring": bank.scoring,
        "source": bank.source,
        "candidates": bank.candidates,
    }
    arrays: dict[str, np.ndarray] = {"ids": bank.ids_N, "facts": np.array(json.dumps(facts, sort_keys=True))}
    for kind, norm in bank.norms.items():
        arrays |= {f"{kind}/{name}": array for name, array in norm.to_arrays().items()}
    digest = digest_of_arrays(arrays)
    content = io.BytesIO()
    np.savez(content, digest=np.array(digest), **arrays)  # type: ignore[arg-type]
    write_atomically(store / QUERY_BANK, content.getvalue())
    return digest


def read_bank(store: Path) -> StoredBank | None:
    """The bank of a store; None if it has none. Raises ``Damaged`` for a file that is not what was written."""
    path = store / QUERY_BANK
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = dict(file)
        digest = str(arrays.pop("digest"))
        if digest != digest_of_arrays(arrays):
            raise ValueError("its content does not match its checksum")
        facts = json.loads(str(arrays["facts"]))
        norms = {kind: BankNorm.from_arrays(_part(arrays, kind)) for kind in KINDS}
        return StoredBank(ids_N=arrays["ids"], norms=norms, digest=digest, **facts)
    except (ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        raise Damaged(f"{path} is damaged ({error}); compute it again with `emcl index bank`") from error


def _part(arrays: Mapping[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(f"{kind}/"): array for name, array in arrays.items() if name.startswith(f"{kind}/")}


def _frozen_blocks(reader: StoreReader, encoder: Encoder, text_BD: Floats, ids_N: Ids) -> Iterator[Floats]:
    queries_BM = reader.correction.queries(text_BD, "text", "videos", hubs=False)
    for rows in _segment_blocks(len(text_BD), len(ids_N)):
        yield queries_BM @ reader.correction.items(reader.segment_embeddings(ids_N[rows]), "videos").T


def _pooled_blocks(reader: StoreReader, encoder: Encoder, text_BD: Floats, ids_N: Ids) -> Iterator[Floats]:
    from model.evaluate.rank import pool_and_score  # loads torch, which reading a bank does not need

    for rows in _segment_blocks(len(text_BD), len(ids_N)):
        yield pool_and_score(encoder, text_BD, *reader.segment_features(ids_N[rows]))


def _segment_blocks(texts: int, segments: int) -> Iterator[slice]:
    step = max(1, min(4096, BLOCK_SCORES // texts))
    for start in range(0, segments, step):
        yield slice(start, min(start + step, segments))


def _fit(blocks: Iterator[Floats], text_BD: Floats, segments: int, beta: float, top: int) -> BankNorm:
    """Statistics from blocks (B, n) that hold every text and some segments: sums at once, the best as they come."""
    log_sums: list[npt.NDArray[np.float64]] = []
    best_Bk = np.full((len(text_BD), top), -np.inf, np.float32)
    best_place_Bk = np.full((len(text_BD), top), -1)
    start = 0
    for scores_Bn in blocks:
        sums = ColumnLogSums(scores_Bn.shape[1], beta)
        sums.add(scores_Bn)
        log_sums.append(sums.values)
        places_Bn = np.broadcast_to(np.arange(start, start + scores_Bn.shape[1]), scores_Bn.shape)
        scores = np.concatenate([best_Bk, scores_Bn], axis=1)
        places = np.concatenate([best_place_Bk, places_Bn], axis=1)
        chosen_Bk = np.argpartition(-scores, top - 1, axis=1)[:, :top]
        best_Bk, best_place_Bk = np.take_along_axis(scores, chosen_Bk, 1), np.take_along_axis(places, chosen_Bk, 1)
        start += scores_Bn.shape[1]
    return _norm(np.concatenate(log_sums), best_place_Bk, segments, len(text_BD), beta, top)


def _fit_candidates(
    reader: StoreReader, encoder: Encoder, text_BD: Floats, ids_N: Ids, candidates: int, beta: float, top: int
) -> BankNorm:
    """Statistics of the EM pass: every text's own candidates, as a search has them; the rest at its lowest score."""
    places: list[npt.NDArray[np.intp]] = []
    scores: list[Floats] = []
    for start in range(0, len(text_BD), TEXTS_AT_ONCE):
        text_QD = text_BD[start : start + TEXTS_AT_ONCE]
        _, ids_QC = reader.search_videos(reader.correction.queries(text_QD, "text", "videos", hubs=False), candidates)
        ids_QC = np.sort(ids_QC, axis=1)  # an approximate index may find fewer, and fills up with -1
        features_QCFD, mask_QCF = reader.segment_features(ids_QC)
        scored = encoder.score_videos(
            text_QD, features_QCFD, mask_QCF, ids_QC >= 0, "emcl", correction=reader.correction
        )
        places.append(np.where(ids_QC >= 0, np.searchsorted(ids_N, ids_QC), -1))
        scores.append(scored.scores_QN)
    places_BC, scores_BC = np.concatenate(places), np.concatenate(scores).astype(np.float64)
    known_BC = places_BC >= 0
    floor_B1 = np.where(known_BC, scores_BC, np.inf).min(axis=1, keepdims=True)
    # Relative to the largest score, so that no exponential overflows.
    peak = float(scores_BC[known_BC].max())
    gained_BC = np.exp(beta * (scores_BC - peak)) - np.exp(beta * (floor_B1 - peak))
    sums_N = np.full(len(ids_N), np.exp(beta * (floor_B1 - peak)).sum())
    np.add.at(sums_N, places_BC[known_BC], gained_BC[known_BC])
    chosen_Bk = np.argpartition(-scores_BC, top - 1, axis=1)[:, :top]
    best_Bk = np.take_along_axis(places_BC, chosen_Bk, axis=1)
    return _norm(np.log(sums_N) + beta * peak, best_Bk, len(ids_N), len(text_BD), beta, top)


def _norm(
    log_sums_N: npt.NDArray[np.float64],
    best_Bk: npt.NDArray[np.integer],
    segments: int,
    texts: int,
    beta: float,
    top: int,
) -> BankNorm:
    activated_N = np.zeros(segments, bool)
    activated_N[best_Bk[best_Bk >= 0]] = True
    return BankNorm(log_sums_N=log_sums_N, activated_N=activated_N, queries=texts, beta=beta, top=top)


def report_lines(bank: StoredBank, texts: Sequence[str]) -> list[str]:
    """The report of `emcl index bank`."""
    lines = [f"query bank of {len(texts)} texts from {bank.source}, over {len(bank.ids_N)} segments"]
    for kind, norm in bank.norms.items():
        hubness_N = norm.hubness
        lines.append(
            f"rerank {kind}: {int(norm.activated_N.sum())} segments are hubs; hubness from {hubness_N.min():.3f} to "
            f"{hubness_N.max():.3f}, median {np.median(hubness_N):.3f}"
        )
    return lines
