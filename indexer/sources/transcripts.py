"""Transcripts: what is said in a video, as cues with times, from subtitle files and from the JSON of Whisper.

In: the bytes of an ``.srt``, ``.vtt`` or ``.json`` file. Out: cues in order of time, and notes on what was not as it
should be. SubRip and WebVTT are read by webvtt-py, which follows the specification's parser in linear time.

A file belongs to a video by its name: ``NAME.srt`` or ``NAME.LANG.srt`` for ``NAME.mp4``, beside it or in a folder that
was named. Of several files in one language the first suffix of ``SUFFIXES`` counts: Whisper writes all of them.
"""

from __future__ import annotations

import codecs
import html
import io
import json
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import webvtt

from indexer.errors import TranscriptError
from indexer.locations import leads_out
from model.durable import open_regular

SUFFIXES = (".vtt", ".srt", ".json")

MOST_BYTES = 8 << 20
MOST_CUES = 50_000
MOST_CUE_CHARS = 2_000
LONGEST_SECONDS = 10.0**7
"""The latest time that a cue may have; the service knows no later moment of a video either."""

LANGUAGE = r"[A-Za-z]{2,3}(?:-[A-Za-z0-9]{2,8}){0,3}"
"""A language tag of BCP 47, such as ``en``, ``pt-BR`` or ``zh-Hant``."""

UNKNOWN = "und"
"""BCP 47's tag for a language that is not known."""

_TWO_LETTERS = dict(
    re.findall(
        r"(\w{3}):(\w\w)",
        "ara:ar bul:bg cat:ca ces:cs cze:cs chi:zh zho:zh dan:da deu:de ger:de dut:nl nld:nl ell:el gre:el eng:en "
        "est:et fas:fa per:fa fin:fi fra:fr fre:fr heb:he hin:hi hrv:hr hun:hu ice:is isl:is ind:id ita:it jpn:ja "
        "kor:ko lav:lv lit:lt may:ms msa:ms nor:no pol:pl por:pt ron:ro rum:ro rus:ru slk:sk slo:sk slv:sl spa:es "
        "srp:sr swe:sv tam:ta tel:te tha:th tur:tr ukr:uk vie:vi ",
    )
)
"""The tags of ISO 639-2 for which BCP 47 wants the shorter ones of ISO 639-1; those of frequent languages."""

_NAMED = re.compile(rf"(?P<stem>.+?)(?:\.(?P<language>{LANGUAGE}))?(?:\.(?:sdh|cc|forced|default))?", re.DOTALL)
_OVERRIDE = re.compile(r"\{\\[^{}]*\}")  # formatting of SubStation Alpha, which SubRip files use too
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cue:
    """A passage of speech: times in seconds from the video's first frame, ``end_seconds`` not before the start."""

    start_seconds: float
    end_seconds: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """The cues of a transcript in order of time; ``notes`` say what was not as it should be."""

    cues: tuple[Cue, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TranscriptFile:
    """A file that holds a transcript of a video. ``named``: its folder was named for transcripts."""

    path: Path
    language: str
    named: bool = False


def parse(content: bytes, suffix: str) -> Parsed:
    """The transcript in the bytes of a file with this suffix. Raises ``TranscriptError``, without the file's name."""
    if len(content) > MOST_BYTES:
        raise TranscriptError(f"{len(content):,} bytes; a transcript has at most {MOST_BYTES:,}")
    text, notes = _decoded(content)
    cues = list(_READERS[suffix](text))
    if lost := suffix != ".json" and sum("-->" in line for line in text.splitlines()) - len(cues):
        notes.append(f"{lost} cues without text, or with times that cannot be read, were left out")
    return checked(cues, notes)


def checked(cues: Sequence[tuple[float, float, str]], notes: Iterable[str] = ()) -> Parsed:
    """A transcript of start, end and plain text within the limits, to the millisecond; empty texts are left out. Raises
    ``TranscriptError``.
    """
    notes = list(notes)
    if len(cues) > MOST_CUES:
        raise TranscriptError(f"{len(cues):,} cues; a transcript has at most {MOST_CUES:,}")
    kept = []
    backwards = 0
    for start, end, words in cues:
        if not words:
            continue
        if len(words) > MOST_CUE_CHARS:
            raise TranscriptError(
                f"the cue at {start:.3f} s has {len(words):,} characters; one has at most {MOST_CUE_CHARS:,}"
            )
        if not (0 <= start <= LONGEST_SECONDS and 0 <= end <= LONGEST_SECONDS):
            raise TranscriptError(f"a cue from {start} to {end} s; times are from 0 to {LONGEST_SECONDS:.0f} s")
        backwards += end < start
        kept.append(Cue(start_seconds=round(start, 3), end_seconds=round(max(start, end), 3), text=words))
    if backwards:
        notes.append(f"{backwards} cues end before they start; they count as a moment")
    return Parsed(cues=tuple(sorted(kept, key=lambda cue: (cue.start_seconds, cue.end_seconds))), notes=tuple(notes))


def suffix_of(content: bytes) -> str:
    """Which of ``SUFFIXES`` the content of a transcript of unknown name belongs to."""
    start = content[:64].decode(
        "utf-16" if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8", "ignore"
    )
    start = start.lstrip("\ufeff \t\r\n")
    return ".vtt" if start.startswith("WEBVTT") else ".json" if start.startswith(("{", "[")) else ".srt"


def plain(text: str) -> str:
    """The text of a cue without formatting of SubStation Alpha, control characters and blank lines."""
    text = _OVERRIDE.sub("", text).replace("\\N", "\n").replace("\\n", "\n").replace("\\h", " ")
    text = "".join(character for character in text if character in "\n\t" or character.isprintable())
    return "\n".join(line for line in (" ".join(part.split()) for part in text.split("\n")) if line)


def language_of(tag: str | None) -> str:
    """The BCP 47 tag of a language as containers say it: with three letters of ISO 639-2, or not at all."""
    if tag is None or re.fullmatch(LANGUAGE, tag) is None:
        return UNKNOWN
    return str(_TWO_LETTERS.get(tag.lower(), tag))


def read_file(path: Path) -> bytes:
    """The bytes of a transcript file. Raises ``TranscriptError`` without its name, also for one that is too large."""
    try:
        with open_regular(path) as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise TranscriptError(error.strerror or str(error)) from error
    if len(content) > MOST_BYTES:
        raise TranscriptError(f"more than {MOST_BYTES:,} bytes, which is the most that a transcript has")
    return content


class TranscriptFolders:
    """Finds the transcript files of videos: beside them, and by their stems in the folder ``named``.

    With ``within``, files that links lead out of these folders are not read.
    """

    def __init__(self, named: Path | None = None, *, within: Collection[Path] = ()) -> None:
        self.problems: list[str] = []
        self._within = within
        self._listed: dict[Path, dict[str, list[tuple[Path, str]]]] = {}
        self._named = self._by_stem(named.rglob("*")) if named is not None else {}

    def of(self, video: Path) -> list[TranscriptFile]:
        """The transcript files of a video, one for each language; those in the named folder come first."""
        if video.parent not in self._listed:
            try:
                self._listed[video.parent] = self._by_stem(video.parent.iterdir())
            except OSError:  # the video could not be read either, which is reported
                self._listed[video.parent] = {}
        chosen: dict[str, TranscriptFile] = {}
        for named, files in ((True, self._named), (False, self._listed[video.parent])):
            for path, language in sorted(files.get(_composed(video.stem), ()), key=lambda one: _rank(one[0])):
                if path != video and self._may_read(path):
                    chosen.setdefault(language, TranscriptFile(path=path, language=language, named=named))
        return list(chosen.values())

    def _may_read(self, path: Path) -> bool:
        if leads_out(path, self._within):
            self.problems.append(f"{path}: a link leads out of the folders that may be read")
            return False
        return True

    @staticmethod
    def _by_stem(paths: Iterable[Path]) -> dict[str, list[tuple[Path, str]]]:
        """By each stem that a file may belong to, the file and the language that its name then says."""
        found: dict[str, list[tuple[Path, str]]] = defaultdict(list)
        for path in paths:
            if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
                stem = _composed(path.stem)
                found[stem].append((path, UNKNOWN))
                match = _NAMED.fullmatch(stem)
                if match and match["stem"] != stem:
                    found[match["stem"]].append((path, match["language"] or UNKNOWN))
        return found


def _composed(name: str) -> str:
    """A name as one sequence of characters, however its system composes accents."""
    return unicodedata.normalize("NFC", name)


def _rank(path: Path) -> tuple[int, str]:
    return SUFFIXES.index(path.suffix.lower()), str(path)


def is_whisper(content: bytes) -> bool:
    """Whether JSON beside a video may be Whisper's: other programs write there what has nothing to do with speech."""
    return b'"segments"' in content or b'"transcription"' in content


def is_of_transcript(path: Path, lines: Iterable[str]) -> bool:
    """Whether ``NAME.txt`` only holds the cues of a transcript ``NAME`` beside it: Whisper writes both."""
    given = {" ".join(line.split()) for line in lines} - {""}
    for file in (path.with_suffix(suffix) for suffix in SUFFIXES):
        try:
            cues = parse(read_file(file), file.suffix).cues if file.exists() else ()
        except TranscriptError:  # reported where transcripts are read
            continue
        if given and given <= {" ".join(cue.text.split()) for cue in cues}:
            return True
    return False


def _decoded(content: bytes) -> tuple[str, list[str]]:
    """The text in any of the encodings that subtitle files come in, and a note if it had to be guessed."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if content.startswith(mark):
            try:
                return content.decode(encoding), []
            except UnicodeDecodeError as error:
                raise TranscriptError(f"not valid {encoding} ({error.reason} at byte {error.start})") from error
    if b"\0" in content:
        raise TranscriptError("holds zero bytes and no byte order mark; save it as UTF-8")
    try:
        return content.decode("utf-8"), []
    except UnicodeDecodeError:
        pass
    try:
        return content.decode("cp1252"), [
            "not UTF-8, so it was read as Windows-1252; if words look wrong, save it as UTF-8"
        ]
    except UnicodeDecodeError as error:
        raise TranscriptError(f"neither UTF-8 nor Windows-1252 (byte {error.start}); save it as UTF-8") from error


_Timed = tuple[float, float, str]


def _subtitles(text: str, kind: str) -> Iterator[_Timed]:
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip("\n")
    if not text.strip():
        return
    try:
        for cue in webvtt.from_buffer(io.StringIO(text), format=kind).captions:
            words = html.unescape(cue.text) if kind == "vtt" else cue.text
            yield _seconds(cue.start), _seconds(cue.end), plain(words)
    except webvtt.errors.MalformedFileError as error:
        first = "WEBVTT" if kind == "vtt" else "a number, then a line with times such as 00:00:01,000 --> 00:00:02,500"
        raise TranscriptError(f"not a .{kind} file: it has to begin with {first}") from error
    except webvtt.errors.MalformedCaptionError as error:
        raise TranscriptError(f"a cue cannot be read: {error}") from error


def _seconds(stamp: str) -> float:
    return float(webvtt.models.Timestamp.from_string(stamp).in_milliseconds() / 1000)


def _whisper(text: str) -> Iterator[_Timed]:
    """Segments of OpenAI's Whisper, faster-whisper and whisper.cpp's ``-oj``, which says milliseconds."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TranscriptError(f"not valid JSON ({error})") from error
    segments: Any = data
    if isinstance(data, dict):
        segments = data.get("segments", data.get("transcription"))
    if not isinstance(segments, list):
        raise TranscriptError("not Whisper's JSON: expected a list `segments` with `start`, `end` and `text`")
    for number, segment in enumerate(segments):
        try:
            if "offsets" in segment:
                start, end = (float(segment["offsets"][key]) / 1000 for key in ("from", "to"))
            else:
                start, end = float(segment["start"]), float(segment["end"])
            words = segment["text"]
            if not isinstance(words, str) or not (math.isfinite(start) and math.isfinite(end)):
                raise TypeError
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise TranscriptError(
                f"segment {number} of Whisper's JSON: expected numbers `start` and `end` and a text `text`"
            ) from error
        yield start, end, plain(words)


_READERS: dict[str, Callable[[str], Iterator[_Timed]]] = {
    ".srt": lambda text: _subtitles(text, "srt"),
    ".vtt": lambda text: _subtitles(text, "vtt"),
    ".json": _whisper,
}


def webvtt_of(cues: Iterable[Cue]) -> str:
    """A WebVTT file of cues: texts are escaped, so that nothing in them is markup."""
    blocks = ["WEBVTT"]
    for cue in cues:
        text = html.escape(cue.text, quote=False)  # so that no arrow is left either
        blocks.append(f"{_stamp(cue.start_seconds)} --> {_stamp(cue.end_seconds)}\n{text}")
    return "\n\n".join(blocks) + "\n"


def _stamp(seconds: float) -> str:
    whole = round(seconds * 1000)
    minutes, milliseconds = divmod(whole, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}.{milliseconds % 1000:03d}"
