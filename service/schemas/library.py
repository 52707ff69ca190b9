"""The JSON of the library: videos and captions, as they are listed, added and edited. Unknown fields are errors."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import Field

from model.video.recording import Recording
from service.errors import Unprocessable
from service.schemas.search import VIDEO_ID, Answer, Request, stream_url, thumbnail_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from indexer.store.records import Caption, Transcript, Video
    from service.library.upload_store import Accepted
    from service.search.values import QueryLimits

MAX_TAGS, MAX_TAG_CHARS, MAX_TITLE_CHARS, MAX_CAPTIONS = 64, 100, 500, 1000


def check_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """Tags without blanks around them, each once. Raises ``Unprocessable``."""
    clean = tuple(dict.fromkeys(tag.strip() for tag in tags))
    if len(clean) > MAX_TAGS or any(not 1 <= len(tag) <= MAX_TAG_CHARS or not _is_unicode(tag) for tag in clean):
        raise Unprocessable(
            "these tags cannot be used",
            expected=f"at most {MAX_TAGS} tags of 1 to {MAX_TAG_CHARS} characters",
            next_step="send fewer or shorter tags",
        )
    return clean


def check_title(title: str) -> str:
    """A title without blanks around it. Raises ``Unprocessable``."""
    clean = title.strip()
    if len(clean) > MAX_TITLE_CHARS or not _is_unicode(clean):
        raise Unprocessable(
            "this title cannot be used",
            expected=f"Unicode text of at most {MAX_TITLE_CHARS} characters",
            next_step="send a shorter title",
        )
    return clean


def check_caption(limits: QueryLimits, text: str) -> str:
    """A caption without blanks around it. Raises ``Unprocessable``."""
    clean = text.strip()
    limits.check_texts((clean,))
    return clean


def _is_unicode(text: str) -> bool:
    """JSON can write half of a surrogate pair, which is not a character, and SQLite ends a text at a NUL."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


class SegmentOut(Answer):
    """A segment of a video."""

    segment: int
    start: float
    end: float


class TranscriptOut(Answer):
    """A transcript that a video has."""

    language: str = Field(description="BCP 47 tag; `und` if it is not known.")
    origin: str = Field(description="`http`, `file`, `speech` (recognised) or `track` (of the video's file).")
    cues: int
    url: str = Field(description="The transcript as WebVTT.")


class TranscriptPut(Answer):
    """A transcript that was put."""

    language: str
    cues: int
    notes: list[str] = Field(description="What was not as it should be, such as a guessed encoding.")


class PlaceOut(Answer):
    """A place on the earth, in degrees; north and east are positive."""

    latitude: float
    longitude: float

    @classmethod
    def of(cls, recording: Recording) -> PlaceOut | None:
        """Where it was recorded, if that is known."""
        if recording.latitude is None or recording.longitude is None:
            return None
        return cls(latitude=recording.latitude, longitude=recording.longitude)


def _iso(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):  # the time of a file may be anything
        return None


class VideoOut(Answer):
    """An indexed video."""

    video_id: str
    title: str
    duration_seconds: float | None
    width: int | None
    height: int | None
    size_bytes: int
    tags: list[str]
    state: str = Field(description="`indexed`, `pending` or `failed`.")
    reason: str | None = Field(description="Why it failed, or which parts could not be read.")
    segments: list[SegmentOut]
    captions: list[str]
    transcripts: list[TranscriptOut] = Field([], description="What is said, in order of language.")
    recorded: str | None = Field(
        None, description="When it was recorded, ISO 8601 in UTC: as the video says, else the time of its file."
    )
    camera: str | None = Field(None, description="Make and model of the camera, if the video names them.")
    place: PlaceOut | None = Field(None, description="Where it was recorded, if the video says.")
    thumbnail_url: str
    stream_url: str

    @classmethod
    def of(cls, video: Video, transcripts: Sequence[Transcript]) -> VideoOut:
        """The JSON of a video with these transcripts."""
        return cls(
            video_id=video.video_id,
            title=video.title,
            duration_seconds=video.duration_seconds,
            width=video.width,
            height=video.height,
            size_bytes=video.size_bytes,
            tags=list(video.tags),
            state=video.state,
            reason=video.reason,
            segments=[
                SegmentOut(segment=segment.number, start=segment.start_seconds, end=segment.end_seconds)
                for segment in video.segments
            ],
            captions=[caption.text for caption in video.captions],
            transcripts=[
                TranscriptOut(
                    language=one.language,
                    origin=one.origin,
                    cues=one.cues,
                    url=f"/v1/videos/{video.video_id}/transcript?language={one.language}",
                )
                for one in transcripts
            ],
            recorded=_iso(video.recording.recorded_seconds),
            camera=video.recording.camera,
            place=PlaceOut.of(video.recording),
            thumbnail_url=thumbnail_url(video.video_id),
            stream_url=stream_url(video.video_id),
        )

    @classmethod
    def of_pending(cls, accepted: Accepted) -> VideoOut:
        """The JSON of a video that was accepted and is not indexed yet."""
        return cls(
            video_id=accepted.video_id,
            title=accepted.title or accepted.video_id[:12],
            duration_seconds=None,
            width=None,
            height=None,
            size_bytes=accepted.size_bytes,
            tags=list(accepted.tags),
            state="pending",
            reason=None,
            segments=[],
            captions=list(accepted.captions),
            thumbnail_url=thumbnail_url(accepted.video_id),
            stream_url=stream_url(accepted.video_id),
        )


class VideosPage(Answer):
    """A page of videos in the order of the query's `sort`."""

    videos: list[VideoOut]
    total: int
    offset: int
    limit: int


class VideoAdded(Answer):
    """What became of an upload."""

    video_id: str = Field(description="SHA-256 of the video's bytes.")
    state: str = Field(description="`indexed`: it can be found; `pending`: it can when its job has succeeded.")
    job_id: str | None = Field(description="The job that adds it, if it is pending.")
    video_url: str
    job_url: str | None


class VideoEdit(Request):
    """Fields to change; others keep their values."""

    tags: list[str] | None = Field(None, max_length=MAX_TAGS, description="All its tags from now on.")
    title: str | None = Field(
        None, max_length=MAX_TITLE_CHARS, description="Its title; empty for the name of its file without the ending."
    )


class CaptionIn(Request):
    """A text by which a video is found."""

    text: str = Field(description="The text.")
    video_id: str | None = Field(None, pattern=VIDEO_ID, description="The indexed video that it belongs to, if any.")


class CaptionsIn(Request):
    """Captions to add, all or none."""

    captions: list[CaptionIn] = Field(min_length=1, max_length=MAX_CAPTIONS)


class StoredCaption(Answer):
    """A caption of the library."""

    caption_id: int
    text: str
    video_id: str | None = Field(description="The indexed video that it belongs to, if any.")

    @classmethod
    def of(cls, caption: Caption) -> StoredCaption:
        """The JSON of a caption."""
        return cls(caption_id=caption.caption_id, text=caption.text, video_id=caption.video_id)


class CaptionsAdded(Answer):
    """The captions of the request, in its order, each with its id; those that were there before keep theirs."""

    captions: list[StoredCaption]


class CaptionsPage(Answer):
    """A page of captions in the order of their ids."""

    captions: list[StoredCaption]
    total: int
    offset: int
    limit: int
