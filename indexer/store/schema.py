"""The catalogue's tables, as numbered migrations, and the checks before one is opened."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from string import Template
from urllib.parse import quote

from indexer.errors import NewerFormat, NotAStore, StoreError
from indexer.store import words

APPLICATION_ID = 0x454D434C  # "EMCL"

_NEXT_REVISION = "(SELECT ifnull(max(CAST(value AS INTEGER)), 0) + 1 FROM meta WHERE key = 'revision')"
"""What the transaction that is under way will count as."""


_LOG_TRIGGER = Template("""
    CREATE TRIGGER log_${table}_${event}_${row} AFTER $event ON $table BEGIN
        DELETE FROM changed_videos WHERE video_id = $row.video_id;
        INSERT INTO changed_videos SELECT $row.video_id, $next_revision WHERE $row.video_id IS NOT NULL;
        DELETE FROM changed_captions WHERE caption_id = $caption AND $row.video_id IS NULL;
        INSERT INTO changed_captions SELECT $caption, $next_revision WHERE $row.video_id IS NULL;
    END""")


def _logged(table: str, event: str, row: str) -> str:
    """A trigger that logs the video, or the caption of no video, that a change of ``table`` touches."""
    caption = f"{row}.caption_id" if table == "captions" else "NULL"
    return _LOG_TRIGGER.substitute(table=table, event=event, row=row, caption=caption, next_revision=_NEXT_REVISION)


_LOGGED_TABLES = ("videos", "titles", "locations", "tags", "segments", "captions")
_LOG_TRIGGERS = ";".join(
    _logged(table, event, row)
    for table in _LOGGED_TABLES
    for event, row in (("INSERT", "new"), ("UPDATE", "old"), ("UPDATE", "new"), ("DELETE", "old"))
)

WITH_WORDS = 7
"""The first version of the catalogue that has documents, which are searched by words."""

WITH_TRANSCRIPTS = 8
"""The first version of the catalogue that has transcripts, whose cues are documents with times."""

WITH_RECORDINGS = 9
"""The first version of the catalogue that knows when, where and with what videos were recorded."""

WITH_READ_RECORDINGS = 10
"""The first version of the catalogue that knows which videos were asked for it."""

MIGRATIONS = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE shards (
        kind TEXT NOT NULL, shard INTEGER NOT NULL, rows INTEGER NOT NULL, PRIMARY KEY (kind, shard)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE videos (
        video_id TEXT PRIMARY KEY,
        state TEXT NOT NULL CHECK (state IN ('pending', 'indexed', 'failed')),
        reason TEXT,
        duration_seconds REAL,
        width INTEGER,
        height INTEGER,
        size_bytes INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE locations (
        path TEXT PRIMARY KEY,
        video_id TEXT NOT NULL REFERENCES videos ON DELETE CASCADE,
        size_bytes INTEGER NOT NULL,
        modified_ns INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX locations_by_video ON locations (video_id);
    CREATE TABLE tags (
        video_id TEXT NOT NULL REFERENCES videos ON DELETE CASCADE, tag TEXT NOT NULL, PRIMARY KEY (video_id, tag)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX tags_by_tag ON tags (tag);
    CREATE TABLE segments (
        segment_id INTEGER PRIMARY KEY AUTOINCREMENT,
        video_id TEXT NOT NULL REFERENCES videos ON DELETE CASCADE,
        number INTEGER NOT NULL,
        start_seconds REAL NOT NULL,
        end_seconds REAL NOT NULL,
        timestamps_seconds BLOB NOT NULL,
        shard INTEGER NOT NULL,
        row INTEGER NOT NULL,
        frames INTEGER NOT NULL,
        crc32 INTEGER NOT NULL,
        pooled_shard INTEGER NOT NULL,
        pooled_row INTEGER NOT NULL,
        pooled_crc32 INTEGER NOT NULL,
        UNIQUE (video_id, number)
    ) STRICT;
    CREATE TABLE captions (
        caption_id INTEGER PRIMARY KEY AUTOINCREMENT,
        video_id TEXT REFERENCES videos ON DELETE CASCADE,
        text TEXT NOT NULL,
        shard INTEGER NOT NULL,
        row INTEGER NOT NULL,
        crc32 INTEGER NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX captions_once ON captions (ifnull(video_id, ''), text);
    CREATE INDEX captions_by_video ON captions (video_id);
    CREATE VIEW segment_windows AS
        SELECT segment_id, video_id, number, start_seconds, end_seconds, timestamps_seconds FROM segments;
    CREATE VIEW searchable_captions AS
        SELECT * FROM captions
        WHERE video_id IS NULL OR video_id IN (SELECT video_id FROM videos WHERE state = 'indexed');
    """,
    "\n".join(
        (
            """
    CREATE TABLE titles (
        video_id TEXT PRIMARY KEY REFERENCES videos ON DELETE CASCADE, title TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE changed_videos (video_id TEXT PRIMARY KEY, revision INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    CREATE INDEX changed_videos_by_revision ON changed_videos (revision);
    CREATE TABLE changed_captions (caption_id INTEGER PRIMARY KEY, revision INTEGER NOT NULL) STRICT;
    CREATE INDEX changed_captions_by_revision ON changed_captions (revision);
    CREATE TABLE change_log (since INTEGER NOT NULL) STRICT;
    INSERT INTO change_log SELECT ifnull(max(CAST(value AS INTEGER)), 0) FROM meta WHERE key = 'revision';
    """,
            _LOG_TRIGGERS,
        )
    ),
    """
    CREATE TABLE sources (
        name TEXT PRIMARY KEY,
        size_bytes INTEGER NOT NULL,
        version INTEGER NOT NULL,
        complete INTEGER NOT NULL,
        reason TEXT
    ) STRICT, WITHOUT ROWID;
    """,
    """
    -- Own files are named relative to the store from here on (indexer.store.media): earlier programs would take them
    -- for files that nothing names, and delete them.
    """,
    """
    CREATE INDEX videos_by_state ON videos (state);
    """,
    """
    -- Not a column of locations: the log of changes would take every file whose inode is recorded for a changed video.
    CREATE TABLE inodes (
        path TEXT PRIMARY KEY REFERENCES locations ON DELETE CASCADE, inode INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    """,
    """
    CREATE TABLE documents (
        document_id INTEGER PRIMARY KEY,
        video_id TEXT NOT NULL REFERENCES videos ON DELETE CASCADE,
        kind TEXT NOT NULL,
        text TEXT NOT NULL,
        words TEXT NOT NULL,
        length INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX documents_by_video ON documents (video_id);
    CREATE TABLE document_counts (documents INTEGER NOT NULL, words INTEGER NOT NULL) STRICT;
    INSERT INTO document_counts VALUES (0, 0);
    CREATE VIRTUAL TABLE documents_fts USING fts5 (
        words, content = 'documents', content_rowid = 'document_id', prefix = '2 3',
        tokenize = "unicode61 remove_diacritics 2"
    );
    CREATE TRIGGER documents_insert AFTER INSERT ON documents BEGIN
        INSERT INTO documents_fts (rowid, words) VALUES (new.document_id, new.words);
        UPDATE document_counts SET documents = documents + 1, words = words + new.length;
    END;
    CREATE TRIGGER documents_delete AFTER DELETE ON documents BEGIN
        INSERT INTO documents_fts (documents_fts, rowid, words) VALUES ('delete', old.document_id, old.words);
        UPDATE document_counts SET documents = documents - 1, words = words - old.length;
    END;
    INSERT INTO documents (video_id, kind, text, words, length)
        SELECT video_id, kind, text, search_words(text), count_words(text) FROM (
            SELECT video_id, 'title' AS kind, title AS text FROM titles
            UNION ALL SELECT DISTINCT video_id, 'name', file_name(path, video_id) FROM locations
            UNION ALL SELECT video_id, 'tag', tag FROM tags
            UNION ALL SELECT video_id, 'caption', text FROM captions WHERE video_id IS NOT NULL
        ) WHERE count_words(text) > 0;
    """,
    "\n".join(
        (
            """
    -- A transcript without cues was removed over HTTP: it keeps files and tracks in that language from coming back.
    CREATE TABLE transcripts (
        transcript_id INTEGER PRIMARY KEY AUTOINCREMENT,
        video_id TEXT NOT NULL REFERENCES videos ON DELETE CASCADE,
        language TEXT NOT NULL,
        origin TEXT NOT NULL CHECK (origin IN ('http', 'file', 'speech', 'track')),
        source TEXT NOT NULL,
        version TEXT NOT NULL,
        UNIQUE (video_id, language)
    ) STRICT;
    CREATE TABLE cues (
        transcript_id INTEGER NOT NULL REFERENCES transcripts ON DELETE CASCADE,
        number INTEGER NOT NULL,
        start_seconds REAL NOT NULL,
        end_seconds REAL NOT NULL,
        text TEXT NOT NULL,
        PRIMARY KEY (transcript_id, number)
    ) STRICT, WITHOUT ROWID;
    ALTER TABLE documents ADD COLUMN transcript_id INTEGER;
    ALTER TABLE documents ADD COLUMN start_seconds REAL;
    ALTER TABLE documents ADD COLUMN end_seconds REAL;
    """,
            ";".join(
                _logged("transcripts", event, row)
                for event, row in (("INSERT", "new"), ("UPDATE", "old"), ("UPDATE", "new"), ("DELETE", "old"))
            ),
        )
    ),
    "\n".join(
        (
            """
    -- Times in Unix seconds. Of videos that were indexed before, only the file's time is known. Filled before changes
    -- are logged: a generation without this table is read with the same times (indexer.store.snapshot).
    CREATE TABLE recordings (
        video_id TEXT PRIMARY KEY REFERENCES videos ON DELETE CASCADE,
        recorded REAL,
        camera TEXT,
        latitude REAL,
        longitude REAL
    ) STRICT, WITHOUT ROWID;
    INSERT INTO recordings SELECT video_id, min(modified_ns) / 1e9, NULL, NULL, NULL FROM locations
        WHERE video_id IN (SELECT video_id FROM videos WHERE state = 'indexed') GROUP BY video_id;
    CREATE INDEX recordings_by_time ON recordings (recorded);
    """,
            ";".join(
                _logged("recordings", event, row)
                for event, row in (("INSERT", "new"), ("UPDATE", "old"), ("UPDATE", "new"), ("DELETE", "old"))
            ),
        )
    ),
    """
    -- Videos whose containers were asked when they were recorded. Not a column of recordings, and not logged: that a
    -- container says nothing changes no answer.
    CREATE TABLE read_recordings (
        video_id TEXT PRIMARY KEY REFERENCES videos ON DELETE CASCADE
    ) STRICT, WITHOUT ROWID;
    -- What members of archives and URLs have as modified_ns is a version, not a time.
    UPDATE recordings SET recorded = NULL WHERE recorded IS NOT NULL AND video_id NOT IN (
        SELECT video_id FROM locations WHERE modified_ns > 0 AND path NOT LIKE '%://%' AND path NOT LIKE '%.tar%!%'
    ) AND recorded = (SELECT min(modified_ns) / 1e9 FROM locations l WHERE l.video_id = recordings.video_id);
    """,
)
"""Migration number n takes a catalogue from version n to n + 1. Never edited once released, only appended to."""


def database_uri(path: Path, query: str) -> str:
    """A SQLite URI for ``path`` with options such as ``mode=ro``."""
    return f"file:{quote(str(path.absolute()))}?{query}"


def check_format(connection: sqlite3.Connection, path: Path) -> None:
    """Raise ``NotAStore`` for a file that is not a catalogue, ``NewerFormat`` for one of a newer program."""
    try:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        empty = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
    except sqlite3.DatabaseError as error:
        raise NotAStore(f"{path} is not a catalogue of a store ({error})") from error
    if application != APPLICATION_ID and not empty:
        raise NotAStore(f"{path} is a database of another program (application id {application:#x})")
    if version > len(MIGRATIONS):
        raise NewerFormat(
            f"{path} has catalogue format {version}, this program reads up to {len(MIGRATIONS)}; "
            "use the version of the program that wrote it, or a newer one"
        )


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a catalogue up to the newest version, one migration at a time, each a transaction of its own.

    Raises ``StoreError`` where SQLite was built without full-text search.
    """
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version < len(MIGRATIONS) and not has_full_text_search(connection):
        raise StoreError(
            f"this Python's SQLite {sqlite3.sqlite_version} was built without FTS5, which searching by words needs; "
            "use a Python whose SQLite has it, such as that of python.org, Debian or conda"
        )
    words.add_functions(connection)
    for number in range(version, len(MIGRATIONS)):
        connection.executescript(
            f"BEGIN IMMEDIATE; {MIGRATIONS[number]}; PRAGMA application_id = {APPLICATION_ID};"
            f" PRAGMA user_version = {number + 1}; COMMIT;"
        )


def has_full_text_search(connection: sqlite3.Connection) -> bool:
    """Whether this SQLite was built with FTS5."""
    return bool(connection.execute("SELECT sqlite_compileoption_used('ENABLE_FTS5')").fetchone()[0])
