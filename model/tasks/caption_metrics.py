"""Metrics of captions: BLEU-1 to 4, ROUGE-L, CIDEr-D, as the package that papers report with (coco-caption) has them.

In: one hypothesis and several references for each video, already cut into words (``tokenise``; the package's own
tokeniser needs Java, so figures by this one say "own tokeniser"). Out: float64 numbers. METEOR needs Java and a
100 MB table of paraphrases and is not computed here: its cell is a dash.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

Words = Sequence[str]
Grams = Counter[tuple[str, ...]]

MAX_GRAM = 4
_TINY, _SMALL = 1e-15, 1e-9  # the package's guards
_ROUGE_BETA = 1.2
_CIDER_SIGMA, _CIDER_SCALE = 6.0, 10.0

_DROPPED = frozenset(
    ("''", "'", "``", "`", "-lrb-", "-rrb-", "-lcb-", "-rcb-", ".", "?", "!", ",", ":", "-", "--", "...", ";")
)
_CLITIC = re.compile(r"('s|'m|'d|'re|'ve|'ll|n't)\b")
_TOKEN = re.compile(r"n't|'(?:s|m|d|re|ve|ll)\b|\.\.\.|--|\w+(?:[-.']\w+)*|[^\w\s]")


def tokenise(text: str) -> list[str]:
    """Cut a caption into words: lower case, clitics apart (``it 's``), punctuation dropped."""
    spread = _CLITIC.sub(r" \1", text.lower().replace("’", "'"))
    return [word for word in _TOKEN.findall(spread) if word not in _DROPPED]


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """Figures of a corpus, from 0 to 1 (CIDEr from 0 to 10), and of each video."""

    bleu: tuple[float, ...]
    bleu_each: list[tuple[float, ...]]
    rouge_l: float
    rouge_l_each: list[float]
    cider: float
    cider_each: list[float]


def score_captions(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> CaptionScores:
    """Measure one caption of each video against its references. CIDEr weighs n-grams by this very set of videos.

    Raises ``ValueError`` for no videos, a video without references, or lists of different lengths.
    """
    if not hypotheses or len(hypotheses) != len(references) or not all(references):
        raise ValueError(
            f"captions need one hypothesis and at least one reference for each video, got {len(hypotheses)} and "
            f"{len(references)} videos, {sum(not some for some in references)} of them without a reference"
        )
    bleu, bleu_each = _bleu(hypotheses, references)
    rouge = [_rouge_l(words, some) for words, some in zip(hypotheses, references, strict=True)]
    cider = _cider(hypotheses, references)
    return CaptionScores(
        bleu=bleu,
        bleu_each=bleu_each,
        rouge_l=sum(rouge) / len(rouge),
        rouge_l_each=rouge,
        cider=sum(cider) / len(cider),
        cider_each=cider,
    )


def _grams(words: Words, n: int) -> Grams:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _bleu(
    hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]
) -> tuple[tuple[float, ...], list[tuple[float, ...]]]:
    """Clipped matches over the corpus; the reference length of a video is the closest, of equals the shorter."""
    matched, guessed = [0] * MAX_GRAM, [0] * MAX_GRAM
    length = closest = 0
    each = []
    for words, some in zip(hypotheses, references, strict=True):
        own = min((abs(len(reference) - len(words)), len(reference)) for reference in some)[1]
        counts = []
        for n in range(1, MAX_GRAM + 1):
            limits: Grams = Counter()
            for reference in some:
                limits |= _grams(reference, n)
            counts.append(((_grams(words, n) & limits).total(), max(0, len(words) - n + 1)))
        each.append(_bleu_of([m for m, _ in counts], [g for _, g in counts], len(words), own))
        matched = [total + m for total, (m, _) in zip(matched, counts, strict=True)]
        guessed = [total + g for total, (_, g) in zip(guessed, counts, strict=True)]
        length, closest = length + len(words), closest + own
    return _bleu_of(matched, guessed, length, closest), each


def _bleu_of(matched: Sequence[int], guessed: Sequence[int], length: int, closest: int) -> tuple[float, ...]:
    ratio = (length + _TINY) / (closest + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, values = 1.0, []
    for n, (match, guess) in enumerate(zip(matched, guessed, strict=True), start=1):
        product *= (match + _TINY) / (guess + _SMALL)
        values.append(product ** (1 / n) * penalty)
    return tuple(values)


def _common_length(one: Words, other: Words) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for place, against in enumerate(other, start=1):
            kept = row[place]
            row[place] = diagonal + 1 if word == against else max(row[place], row[place - 1])
            diagonal = kept
    return row[-1]


def _rouge_l(words: Words, references: Sequence[Words]) -> float:
    """F with recall weighed by 1.2²; precision and recall are each the best over the references."""
    common = [_common_length(words, reference) for reference in references]
    precision = max(count / len(words) for count in common) if words else 0.0
    recall = max(count / len(some) if some else 0.0 for count, some in zip(common, references, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    weight = _ROUGE_BETA**2
    return (1 + weight) * precision * recall / (recall + weight * precision)


def _cider(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D, which the package calls CIDEr: counts clipped at the reference's, and a penalty for length."""
    documents: Grams = Counter()
    for some in references:
        documents.update({gram for words in some for n in range(1, MAX_GRAM + 1) for gram in _grams(words, n)})
    log_videos = math.log(len(references))

    def weigh(words: Words, n: int) -> dict[tuple[str, ...], float]:
        return {
            gram: count * (log_videos - math.log(max(1, documents[gram]))) for gram, count in _grams(words, n).items()
        }

    scores = []
    for words, some in zip(hypotheses, references, strict=True):
        total = 0.0
        for reference in some:
            difference = max(0, len(words) - 1) - max(0, len(reference) - 1)  # the package counts bigrams
            penalty = math.exp(-(difference**2) / (2 * _CIDER_SIGMA**2))
            for n in range(1, MAX_GRAM + 1):
                hypothesis, given = weigh(words, n), weigh(reference, n)
                product = sum(
                    min(weight, given.get(gram, 0.0)) * given.get(gram, 0.0) for gram, weight in hypothesis.items()
                )
                norm = math.hypot(*hypothesis.values()) * math.hypot(*given.values())
                total += (product / norm if norm else product) * penalty
        scores.append(_CIDER_SCALE * total / MAX_GRAM / len(some))
    return scores
