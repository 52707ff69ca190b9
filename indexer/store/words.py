"""Texts of videos as words: how a text is divided, and the table ``documents`` of what can be searched by words.

In: what the catalogue says of a video. Out: one document for its title, each name of its file, each tag, each caption
and each cue of its transcripts, as written and as words. The table's full-text index (FTS5) is kept by triggers; the
documents are brought up to date at the end of the transaction that changed a video
(``indexer.store.catalogue.Catalogue.transaction``), so that words are as durable and as current as everything else.

Words are runs of letters and digits after compatibility decomposition and case folding, without accents: composed and
decomposed, narrow and full-width, upper and lower case are one. In scripts that are written without spaces each
character is a word.
"""

from __future__ import annotations

import re
import sqlite3
import unicodedata
from collections.abc import Iterator
from pathlib import PurePath

from indexer.store import media

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_ACCENTS = re.compile("[\u0300-\u036f]")
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")

_Document = tuple[str, str, int | None, float | None, float | None]
"""Kind and text; of a cue also its transcript, its start and its end in seconds."""

_TEXTS = """
SELECT 'title', title, NULL, NULL, NULL FROM titles WHERE video_id = :video
UNION ALL SELECT 'name', path, NULL, NULL, NULL FROM locations WHERE video_id = :video
UNION ALL SELECT 'tag', tag, NULL, NULL, NULL FROM tags WHERE video_id = :video
UNION ALL SELECT 'caption', text, NULL, NULL, NULL FROM captions WHERE video_id = :video
UNION ALL SELECT 'transcript', text, transcript_id, start_seconds, end_seconds
    FROM cues JOIN transcripts USING (transcript_id) WHERE video_id = :video
"""


def folded(text: str) -> str:
    """A text as it is compared: without case, accents and differences of width."""
    if text.isascii():
        return text.lower()
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return unicodedata.normalize("NFC", _ACCENTS.sub("", plain))


def words_of(text: str) -> list[str]:
    """The words of a text, folded, in their order."""
    return _WORD.findall(folded(text))


def spans_of(text: str) -> Iterator[tuple[int, int, list[str]]]:
    """Start and end of each word in a text that is written in composed characters (NFC), with the words it stands for.

    Those are several where a character such as ``㎏`` is taken apart.
    """
    for match in _WORD.finditer(text):
        yield match.start(), match.end(), words_of(match[0])


def name_of(path: str, video_id: str) -> str:
    """The name of a video's file without its ending; empty for a file that the store named by its bytes."""
    place = PurePath(path)
    return "" if media.video_of(place.name) == video_id else place.stem


def refresh(connection: sqlite3.Connection, video_ids: list[str]) -> None:
    """Make the documents of these videos those that the catalogue now gives them; what has not changed stays."""
    for video_id in video_ids:
        wanted = _wanted(connection, video_id)
        query = (
            "SELECT kind, text, transcript_id, start_seconds, end_seconds, document_id FROM documents"
            " WHERE video_id = ?"
        )
        for *known, number in connection.execute(query, (video_id,)).fetchall():
            document: _Document = (known[0], known[1], known[2], known[3], known[4])
            if document in wanted:
                del wanted[document]
            else:
                connection.execute("DELETE FROM documents WHERE document_id = ?", (number,))
        connection.executemany(
            "INSERT INTO documents (video_id, kind, text, transcript_id, start_seconds, end_seconds, words, length)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (video_id, *document, " ".join(words), len(words))
                for document in reversed(wanted)  # so that of cues the first is the newest, which is read first
                if (words := words_of(document[1]))
            ],
        )


def _wanted(connection: sqlite3.Connection, video_id: str) -> dict[_Document, None]:
    """What a video should have documents of, in order; nothing if it is not in the catalogue."""
    found: dict[_Document, None] = {}
    for kind, value, transcript, start, end in connection.execute(_TEXTS, {"video": video_id}):
        found[kind, name_of(value, video_id) if kind == "name" else value, transcript, start, end] = None
    return found


def add_functions(connection: sqlite3.Connection) -> None:
    """Called by the migration that makes the documents of an older catalogue."""
    connection.create_function("search_words", 1, lambda text: " ".join(words_of(text)), deterministic=True)
    connection.create_function("count_words", 1, lambda text: len(words_of(text)), deterministic=True)
    connection.create_function("file_name", 2, name_of, deterministic=True)
