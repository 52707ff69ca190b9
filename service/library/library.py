"""Changes to the store of a running service: add, edit and remove videos and captions. Knows no web framework.

    accept ──► (service.library.upload_queue) ──► committed ──► served
    remove, edit, captions ──────────► committed ──► served

The writer thread commits every change (``service.library.writer_thread``); a change is done when it is being served.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.errors import Conflict, NotFound, Overloaded
from service.library.upload_queue import Additions, add_captions
from service.library.writer_thread import LibraryWriter
from service.media.sandbox import Sandbox

if TYPE_CHECKING:
    from indexer.store.records import TranscriptRow
    from indexer.store.writer import StoreWriter
    from service.jobs.store import JobStore
    from service.search.engine import Engine

Floats = NDArray[np.float32]


class Library:
    """Changes the store in ``path``, which ``engine`` serves; see ``Additions`` and ``LibraryWriter`` for the rest."""

    def __init__(
        self,
        path: Path,
        engine: Engine,
        *,
        sandbox: Sandbox,
        job_store: JobStore,
        compute: Callable[[Callable[[], object]], object],
        overlay_rows: int,
        max_pending: int,
    ) -> None:
        self.writer = LibraryWriter(path, engine.live, engine.encoder, overlay_rows=overlay_rows)
        self.additions = Additions(
            path, engine, self.writer, sandbox=sandbox, job_store=job_store, compute=compute, max_pending=max_pending
        )

    def close(self) -> None:
        """Stop; accepted videos that are not added yet are left for the next service."""
        self.additions.stop()
        self.writer.close()
        self.additions.close()

    def migrate(self) -> Future[None]:
        """Migrate the catalogue: an older one cannot be searched by words until it was opened for writing."""
        return self.writer.run(lambda _: None)

    def remove_video(self, video_id: str) -> Future[None]:
        """Remove a video with its captions, and its bytes if they came over HTTP. ``NotFound`` if there is none."""
        dropped = self.additions.drop(video_id)
        upload_store = self.additions.upload_store

        def remove(writer: StoreWriter) -> None:
            known = writer.catalogue.state(video_id) is not None
            if known:
                writer.remove_videos([video_id])
            again = self.additions.pending(video_id) is not None  # the same bytes were accepted meanwhile
            if upload_store.exists and not again:
                upload_store.remove(video_id)
            if not known and dropped is None:
                raise _no_video(video_id)

        removed = self.writer.run(remove)
        if dropped is None:
            return removed
        done: Future[None] = Future()

        def settle(_: object) -> None:
            # Where another process writes, this video cannot have been committed: it consists of its bytes alone.
            error = removed.exception()
            if isinstance(error, Overloaded):
                if self.additions.pending(video_id) is None:
                    upload_store.remove(video_id)
                error = None
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        removed.add_done_callback(settle)
        return done

    def edit_video(self, video_id: str, *, tags: Sequence[str] | None = None, title: str | None = None) -> Future[None]:
        """Set the tags or the title of an indexed video (empty: the file's name). ``NotFound``, ``Conflict``."""

        def edit(writer: StoreWriter) -> None:
            if writer.catalogue.state(video_id) is None:
                if (accepted := self.additions.pending(video_id)) is not None:
                    raise Conflict(
                        f"video {video_id} is still being added",
                        expected="an indexed video",
                        next_step=f"wait for job {accepted.job_id}",
                    )
                raise _no_video(video_id)
            writer.edit_video(video_id, tags=tags, title=title)

        return self.writer.run(edit)

    def add_captions(self, captions: Sequence[tuple[str | None, str]], rows_ND: Floats) -> Future[list[int]]:
        """Store captions, given as (video id or None, text), with their raw features; the id of each.

        Captions that are there already keep their ids. ``NotFound`` if a video is not indexed: then none is stored.
        """

        def add(writer: StoreWriter) -> list[int]:
            for video_id in {video for video, _ in captions if video is not None}:
                if writer.catalogue.state(video_id) != "indexed":
                    raise _no_video(video_id)
            return add_captions(writer, captions, rows_ND)

        return self.writer.run(add)

    def put_transcript(self, video_id: str, row: TranscriptRow) -> Future[None]:
        """Give a video a transcript, in place of the one in that language. ``NotFound`` if it is not indexed."""

        def put(writer: StoreWriter) -> None:
            if writer.catalogue.state(video_id) != "indexed":
                raise _no_video(video_id)
            writer.set_transcripts({video_id: [row]})

        return self.writer.run(put)

    def remove_transcript(self, video_id: str, language: str | None) -> Future[None]:
        """Remove the transcript of a video in a language, or all; files do not bring it back.

        ``NotFound`` if there is none.
        """

        def remove(writer: StoreWriter) -> None:
            rows = [
                replace(row, origin="http", source="", version="", cues=())
                for row in writer.catalogue.transcripts(video_id)
                if row.cues and row.language == (language or row.language)
            ]
            if not rows:
                which = "transcript" if language is None else f"transcript in {language!r}"
                raise NotFound(
                    f"there is no video {video_id} with a {which}",
                    expected="an indexed video with a transcript",
                    next_step=f"see `transcripts` in GET /v1/videos/{video_id}",
                )
            writer.set_transcripts({video_id: rows})

        return self.writer.run(remove)

    def remove_caption(self, caption_id: int) -> Future[None]:
        """Remove a caption. ``NotFound`` if there is none."""

        def remove(writer: StoreWriter) -> None:
            if not writer.catalogue.has_caption_id(caption_id):
                raise NotFound(
                    f"there is no caption {caption_id}",
                    expected="the id of a caption",
                    next_step="list the captions with GET /v1/captions",
                )
            writer.remove_captions([caption_id])

        return self.writer.run(remove)


def _no_video(video_id: str) -> NotFound:
    return NotFound(
        f"this index has no video {video_id[:80]!r}",
        expected="the id of an indexed video, 64 hexadecimal digits",
        next_step="list the videos with GET /v1/videos",
    )
