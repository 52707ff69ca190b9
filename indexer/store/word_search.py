"""Searching documents by words: which videos have them, how well they fit, and where in the text they are.

In: a text. Out: videos, best first, with the share of the text's words that they have and the document that fits best.
Read from the catalogue itself, one connection for each thread, so that what was committed is found; what a view of the
index serves of it is decided by ``indexer.store.reader``.

Documents come from the full-text index by the rare words of a query, and are ranked here: by the share of its words
that the documents of a video have together, then by the best BM25 of one document (Robertson and Zaragoza 2009, k1 =
1.2, b = 0.75). In the share, a word counts by how rare it is, and by how close together the words of the query stand
in its document: "a big dot, and a red triangle" says little to "big red triangle". A query reads at most
``DOCUMENTS_AT_ONCE`` of them: SQLite's own ``bm25()`` visits every document of every word, 0.2 s for "a" among 100,000
captions.

A cue of a transcript is a document with times. Cues that follow each other are also taken together, because sentences
go on from one to the next; of each video, the passage that fits best counts as one document: all words of a query are
somewhere in two hours of talk.
"""

from __future__ import annotations

import math
import sqlite3
import threading
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from indexer.store.schema import WITH_TRANSCRIPTS, WITH_WORDS
from indexer.store.words import spans_of, words_of

KINDS = ("title", "name", "tag", "caption", "transcript")
"""What a document is, in the order in which a hit names them."""

MOST_WORDS = 32
"""Different words of a query that count: those that come first."""

DOCUMENTS_AT_ONCE = 100

LOOKED_UP_TOGETHER = 3
"""Words that documents must all have where all are frequent: those of a further one are many, and say little."""

CUES_AT_ONCE = 10
"""Cues of one transcript that are compared where a query finds more documents than ``DOCUMENTS_AT_ONCE``: its first."""

SHORTEST_BEGINNING = 2
"""Characters from which on an unknown last word is taken as the beginning of one."""

_K1, _B = 1.2, 0.75
_UNKNOWN = 0.5
"""Weight of a word that no document has, relative to the rarest word."""

_ALMOST = 1 - 1e-9  # sums of the same weights in another order differ by rounding

_SNIPPET_CHARS = 160

_STOP_WORDS = frozenset(
    "a an and are as at be but by for from has have he her his i in into is it its my of on or our she that the their"  # noqa: SIM905
    " them then there these they this to was we were while with you your".split()
)
"""English words that say nothing about a video. They count only in a query that has no others."""

LONGEST_GAP_SECONDS = 2.0
"""Cues with at most this between them follow each other."""

_DOCUMENTS = """
SELECT d.video_id, d.kind, d.text, d.words, d.length, $place
FROM documents_fts f JOIN documents d ON d.document_id = f.rowid
WHERE documents_fts MATCH ? ORDER BY f.rowid DESC
"""
_PLACE, _NO_PLACE = "d.transcript_id, d.start_seconds, d.end_seconds", "NULL, NULL, NULL"


class _Document(NamedTuple):
    """A document as it is read. Times in seconds, of a cue only."""

    video_id: str
    kind: str
    text: str
    words: str
    length: int
    transcript_id: int | None
    start: float | None
    end: float | None


class _Fit(NamedTuple):
    """How a document fits a query. ``covered`` is the weight of the words it has; ``shares`` of each, by its place."""

    covered: float
    bm25: float
    document: _Document
    shares: dict[int, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class WordMatch:
    """A video with words of a query. ``coverage`` in (0, 1]: the share of the query that its documents have, less where
    its words stand far apart.

    ``kinds`` are those of its documents that have any; ``text`` is the one that fits best, as it was written, and
    ``passage`` its start and end in seconds if it is of a transcript.
    """

    video_id: str
    coverage: float
    bm25: float
    kinds: tuple[str, ...]
    text: str
    passage: tuple[float, float] | None = None

    @property
    def order(self) -> tuple[float, float, str]:
        """Sorts the best first. Shares and BM25 that agree to six decimals count as equal."""
        return (-round(self.coverage, 6), -round(self.bm25, 6), self.video_id)


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """The words of a text: how much each counts for the share (0: not at all) and in BM25."""

    words: tuple[str, ...]
    prefix: bool
    weights: tuple[float, ...]
    idf: tuple[float, ...]

    def counts(self, word: str) -> bool:
        """Whether a word of a document carries meaning, unlike "the"."""
        return any(self.weights[place] for place in self.places(word))

    def places(self, word: str) -> list[int]:
        """Which words of the query a word of a document is; the last may be the beginning of one."""
        last = len(self.words) - 1
        return [
            n for n, own in enumerate(self.words) if word == own or (self.prefix and n == last and word.startswith(own))
        ]


class WordSearch:
    """Reads the documents of the database at ``uri()``. Thread-safe; ``close`` when no call is running."""

    def __init__(self, uri: Callable[[], str]) -> None:
        self._uri = uri
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: list[sqlite3.Connection] = []
        self._closed = False

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            self._closed = True
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    @property
    def available(self) -> bool:
        """Whether there are documents; catalogues of earlier versions have none until they are next written to."""
        connection = self._connection()
        version = 0 if self._local.prepared else connection.execute("PRAGMA user_version").fetchone()[0]
        if version >= WITH_WORDS:
            place = _PLACE if version >= WITH_TRANSCRIPTS else _NO_PLACE
            self._local.documents = _DOCUMENTS.replace("$place", place)
            connection.execute("CREATE VIRTUAL TABLE temp.vocabulary USING fts5vocab(main, documents_fts, row)")
            self._local.prepared = True
        return bool(self._local.prepared)

    @property
    def connection(self) -> sqlite3.Connection:
        """This thread's connection to the database."""
        return self._connection()

    def query(self, text: str) -> Query | None:
        """What a text looks for; None for one without words, or without any that a document has.

        A last word that no document has is taken as the beginning of one (search as you type).
        """
        words = list(dict.fromkeys(words_of(text)))[:MOST_WORDS]
        if not words or not self.available:
            return None
        (documents, _), *_ = self._rows("SELECT documents, words FROM document_counts")
        counts = [self._frequency(word) for word in words]
        prefix = counts[-1] == 0 and len(words[-1]) >= SHORTEST_BEGINNING and words[-1] not in _STOP_WORDS
        if prefix:
            counts[-1] = min(documents, self._prefix_frequency(words[-1]))
        if not any(counts):
            return None
        idf = [math.log1p((documents - count + 0.5) / (count + 0.5)) for count in counts]
        rarest = math.log1p(documents / 1.5)
        meant = [word not in _STOP_WORDS for word in words]
        if not any(meant):
            meant = [True] * len(words)
        weights = [
            (value if count else _UNKNOWN * rarest) if counts_at_all else 0.0
            for value, count, counts_at_all in zip(idf, counts, meant, strict=True)
        ]
        return Query(words=tuple(words), prefix=prefix, weights=tuple(weights), idf=tuple(idf))

    def batches(self, query: Query, *, coverage: float = 0.0) -> Iterator[list[WordMatch]]:
        """Videos with words of ``query``, best first among each ``DOCUMENTS_AT_ONCE`` documents; the newest come first.

        ``coverage`` is the least share of the query that videos need. Where all its words are frequent, only documents
        with the ``LOOKED_UP_TOGETHER`` rarest of them, or else with the rarest.
        """
        for expression in self._expressions(query):
            found = False
            cues: Counter[int] = Counter()
            cursor = self._connection().execute(self._local.documents, (expression,))
            while rows := cursor.fetchmany(DOCUMENTS_AT_ONCE):
                found = True
                documents = [_Document(*row) for row in rows]
                if cues or len(rows) == DOCUMENTS_AT_ONCE:
                    documents = [document for document in documents if not _is_further_cue(document, cues)]
                yield self._ranked(query, documents, coverage)
            if found:
                return

    def _expressions(self, query: Query) -> list[str]:
        """What to look up, in turn until something is found."""
        quoted, counts = [], []
        last = len(query.words) - 1
        for n, word in enumerate(query.words):
            begins = query.prefix and n == last
            count = self._prefix_frequency(word) if begins else self._frequency(word)
            if query.weights[n] and count:
                quoted.append(f'"{word}"*' if begins else f'"{word}"')
                counts.append(count)
        order = sorted(range(len(counts)), key=counts.__getitem__)
        chosen, total = [], 0
        for place in order:
            total += counts[place]
            if total > DOCUMENTS_AT_ONCE:
                break
            chosen.append(quoted[place])
        if chosen:
            return [" OR ".join(chosen)]
        rarest = [quoted[place] for place in order[:LOOKED_UP_TOGETHER]]
        return [" AND ".join(rarest), rarest[0]] if quoted else []

    def _ranked(self, query: Query, documents: Sequence[_Document], coverage: float) -> list[WordMatch]:
        (count, words), *_ = self._rows("SELECT documents, words FROM document_counts")
        mean_length = max(1.0, words / max(1, count))
        total = sum(query.weights)
        known = _Places(query)
        documents = _promising(query, documents, known, coverage * total)

        def fits(candidates: Iterable[_Document]) -> list[_Fit]:
            found = (_fit(query, document, mean_length, known) for document in candidates)
            return [fit for fit in found if fit is not None]

        videos: dict[str, list[_Fit]] = defaultdict(list)
        spoken: dict[str, list[_Document]] = defaultdict(list)
        for document in documents:
            if document.transcript_id is not None:
                spoken[document.video_id].append(document)
        for fit in fits(document for document in documents if document.transcript_id is None):
            videos[fit.document.video_id].append(fit)
        for video_id, cues in spoken.items():
            if passages := fits([*cues, *_joined(cues)]):
                videos[video_id].append(max(passages, key=lambda fit: fit[:2]))
        matches = []
        for video_id, found in videos.items():
            shares: dict[int, float] = {}
            for fit in found:
                for place, close in fit.shares.items():
                    shares[place] = max(close, shares.get(place, 0.0))
            best = max(found, key=lambda fit: fit[:2])
            kinds = {fit.document.kind for fit in found}
            start, end = best.document.start, best.document.end
            matches.append(
                WordMatch(
                    video_id=video_id,
                    coverage=min(1.0, sum(query.weights[n] * share for n, share in shares.items()) / total),
                    bm25=best.bm25,
                    kinds=tuple(kind for kind in KINDS if kind in kinds),
                    text=best.document.text,
                    passage=None if start is None or end is None else (start, end),
                )
            )
        return sorted(matches, key=lambda match: match.order)

    def _frequency(self, word: str) -> int:
        """How many documents have a word; kept as long as this object."""
        kept: dict[str, int] = self._frequencies()
        if word not in kept:
            rows = self._rows("SELECT doc FROM temp.vocabulary WHERE term = ?", (word,))
            kept[word] = int(rows[0][0]) if rows else 0
        return kept[word]

    def _prefix_frequency(self, beginning: str) -> int:
        """How many documents have a word that begins like this; one with several such words counts for each."""
        kept, key = self._frequencies(), f"{beginning}*"
        if key not in kept:
            query = "SELECT ifnull(sum(doc), 0) FROM temp.vocabulary WHERE term >= ? AND term < ?"
            kept[key] = int(self._rows(query, (beginning, f"{beginning}\U0010ffff"))[0][0])
        return kept[key]

    def _frequencies(self) -> dict[str, int]:
        self._connection()
        kept: dict[str, int] = self._local.frequencies
        return kept

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return self._connection().execute(query, values).fetchall()

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            with self._lock:
                if self._closed:
                    raise ValueError("this reader was closed; open the store again")
                connection = sqlite3.connect(self._uri(), uri=True, check_same_thread=False, isolation_level=None)
                self._connections.append(connection)
            self._local.connection, self._local.frequencies, self._local.prepared = connection, {}, False
        return connection


def _is_further_cue(document: _Document, seen: Counter[int]) -> bool:
    """Whether enough cues of its transcript were ``seen``, which counts it."""
    if document.transcript_id is None:
        return False
    seen[document.transcript_id] += 1
    return seen[document.transcript_id] > CUES_AT_ONCE


def _promising(query: Query, documents: Sequence[_Document], known: _Places, least: float) -> Sequence[_Document]:
    """The documents of videos whose documents have words of at least this weight, wherever these stand."""
    if least <= 0:
        return documents
    present: dict[str, set[int]] = defaultdict(set)
    for document in documents:
        there = present[document.video_id]
        for word in document.words.split():
            there.update(known[word])
    enough = {name for name, there in present.items() if sum(query.weights[n] for n in there) >= least * _ALMOST}
    return [document for document in documents if document.video_id in enough]


class _Places(dict[str, list[int]]):
    """For each word of a document, which of the query's it is; looked up once each."""

    def __init__(self, query: Query) -> None:
        super().__init__()
        self._query = query

    def __missing__(self, word: str) -> list[int]:
        found = self[word] = self._query.places(word)
        return found


def _fit(query: Query, document: _Document, mean_length: float, known: _Places) -> _Fit | None:
    """How a document fits; None if no word that counts is in it."""
    words = document.words.split()
    counts: dict[int, int] = {}
    for word in set(words):
        for place in known[word]:
            counts[place] = counts.get(place, 0) + words.count(word)
    covered = sum(query.weights[n] for n in counts)
    if covered <= 0:
        return None
    norm = _K1 * (1 - _B + _B * document.length / mean_length)
    bm25 = sum(query.idf[n] * count * (_K1 + 1) / (count + norm) for n, count in counts.items())
    close = 1.0 if sum(1 for n in counts if query.weights[n]) < 2 else _closeness(_positions(query, words, known))
    return _Fit(covered * close, bm25, document, dict.fromkeys(counts, close))


def _positions(query: Query, words: Sequence[str], known: _Places) -> list[tuple[int, int]]:
    """Position and number of each word that counts; words that say nothing keep no others apart."""
    where: list[tuple[int, int]] = []
    skipped = 0
    for position, word in enumerate(words):
        where += [(position - skipped, place) for place in known[word] if query.weights[place]]
        skipped += word in _STOP_WORDS
    return where


def _joined(cues: Sequence[_Document]) -> Iterator[_Document]:
    """Each two cues of one transcript that follow each other, as one document."""
    order = sorted(cues, key=lambda cue: (cue.transcript_id, cue.start, cue.end))
    for one, other in pairwise(order):
        assert one.end is not None
        assert other.start is not None
        if one.transcript_id == other.transcript_id and other.start - one.end <= LONGEST_GAP_SECONDS:
            yield one._replace(
                text=f"{one.text} {other.text}",
                words=f"{one.words} {other.words}",
                length=one.length + other.length,
                end=other.end,
            )


def _closeness(where: Sequence[tuple[int, int]]) -> float:
    """How close together words stand, in (0, 1]: how many there are, divided by the length of their shortest passage.

    ``where`` has the position and the number of each word, in the order of the text.
    """
    different = len({place for _, place in where})
    if different < 2:
        return 1.0
    if len(where) == different:  # each stands there once
        return different / (where[-1][0] - where[0][0] + 1)
    shortest, missing, first = math.inf, different, 0
    inside: dict[int, int] = {}
    for position, place in where:
        missing -= not inside.get(place)
        inside[place] = inside.get(place, 0) + 1
        while inside[where[first][1]] > 1:
            inside[where[first][1]] -= 1
            first += 1
        if not missing:
            shortest = min(shortest, position - where[first][0] + 1)
    return different / shortest


def snippet(query: Query, text: str) -> tuple[tuple[str, bool], ...]:
    """Parts of ``text``, in composed characters, around its first word of the query; True where they are such words."""
    text = unicodedata.normalize("NFC", text)
    marks = [(start, end) for start, end, words in spans_of(text) if any(query.counts(word) for word in words)]
    begin = 0
    if len(text) > _SNIPPET_CHARS and marks:
        begin = max(0, min(marks[0][0] - _SNIPPET_CHARS // 4, len(text) - _SNIPPET_CHARS))
    end = begin + _SNIPPET_CHARS
    parts = [("…", False)] if begin else []
    place = begin
    for start, stop in marks:
        if begin <= start and stop <= end:
            parts += [(text[place:start], False), (text[start:stop], True)]
            place = stop
    parts.append((text[place:end] + ("…" if end < len(text) else ""), False))
    return tuple(part for part in parts if part[0])
