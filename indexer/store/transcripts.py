"""Reading transcripts from the catalogue: which a video has, and their cues."""

from __future__ import annotations

import sqlite3

from indexer.sources.transcripts import Cue
from indexer.store.records import Transcript
from indexer.store.schema import WITH_TRANSCRIPTS

_TRANSCRIPTS = """
SELECT language, origin, count(*) FROM transcripts JOIN cues USING (transcript_id) WHERE video_id = ?
GROUP BY transcript_id ORDER BY language
"""
_CUES = """
SELECT start_seconds, end_seconds, text FROM cues JOIN transcripts USING (transcript_id)
WHERE video_id = ? AND language = ? ORDER BY number
"""


def transcripts_of(connection: sqlite3.Connection, video_id: str) -> list[Transcript]:
    """The transcripts of a video, in order of language."""
    if not has_transcripts(connection):
        return []
    rows = connection.execute(_TRANSCRIPTS, (video_id,))
    return [Transcript(language=language, origin=origin, cues=cues) for language, origin, cues in rows]


def cues_of(connection: sqlite3.Connection, video_id: str, language: str) -> list[Cue]:
    """The cues of one transcript in order of time; none if the video has no transcript in that language."""
    if not has_transcripts(connection):
        return []
    rows = connection.execute(_CUES, (video_id, language))
    return [Cue(start_seconds=start, end_seconds=end, text=text) for start, end, text in rows]


def has_transcripts(connection: sqlite3.Connection) -> bool:
    """Whether the catalogue is of a version that has transcripts."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0]) >= WITH_TRANSCRIPTS
