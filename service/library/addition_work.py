"""The work of adding one accepted video: decoded behind the fence, encoded in its turns, committed with its texts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.errors import Overloaded, Unprocessable
from service.library.upload_store import Accepted
from service.library.writer import LibraryWriter
from service.media.encode_upload import PatientEncoder, encode_video
from service.media.sandbox import Fence, Leash

if TYPE_CHECKING:
    from indexer.store.writer import EncodedVideo, StoreWriter
    from service.jobs.store import JobBook
    from service.search.engine import Engine

T = TypeVar("T")
Floats = NDArray[np.float32]

WAIT_SECONDS = 2.0
"""How often a video whose turn cannot come yet, because another process writes, is tried again."""


class AdditionCancelled(Exception):  # noqa: N818 - nothing went wrong
    """The video is not wanted any more."""


class AdditionWork:
    """Adds videos to the store that ``engine`` serves and ``writer`` writes, one at a time.

    ``compute`` runs a call of the encoder when its turn among the searches comes; ``book`` is told how far a video is;
    ``is_wanted`` says whether a video, by its id, was not deleted in the meantime. What waits ends when ``stopping`` is
    set, and the process that decodes when ``leash`` is pulled.
    """

    def __init__(
        self,
        engine: Engine,
        writer: LibraryWriter,
        *,
        fence: Fence,
        book: JobBook,
        compute: Callable[[Callable[[], object]], object],
        is_wanted: Callable[[str], bool],
        stopping: threading.Event,
        leash: Leash,
    ) -> None:
        self._engine = engine
        self._writer = writer
        self._fence = fence
        self._book = book
        self._compute = compute
        self._is_wanted = is_wanted
        self._stopping = stopping
        self._leash = leash

    def add(self, accepted: Accepted) -> None:
        """Add a video whose job runs; when this returns, it is committed and served.

        Raises ``AdditionCancelled`` if it is not wanted any more, ``ServiceError`` if it cannot be added, and what
        stopped it if the service ends.
        """
        with self._engine.live.lease() as generation:
            manifest = generation.reader.manifest

        def progress(done: int, total: int) -> None:
            self._book.progress(accepted.job_id, done, total, "segments decoded and encoded")
            if self._book.get(accepted.job_id).stopping or not self._is_wanted(accepted.video_id):
                raise AdditionCancelled

        with Path(accepted.path).open("rb") as file:
            encoder = PatientEncoder(self._engine.encoder, self._when_its_turn)
            video = encode_video(accepted, file, manifest, self._fence, encoder, progress, self._leash)
        texts_ND = encoder.encode_texts(accepted.captions)
        self._commit(accepted, lambda writer: self._store(writer, accepted, video, texts_ND))

    def _when_its_turn(self, call: Callable[[], T]) -> T:
        """Run a call of the encoder, however often its turn does not come because searches fill the queue."""
        while True:
            try:
                return self._compute(call)  # type: ignore[return-value]  # what the call returns
            except Overloaded:
                if self._stopping.wait(WAIT_SECONDS):
                    raise

    def _commit(self, accepted: Accepted, work: Callable[[StoreWriter], None]) -> None:
        """Have the writer do it, when nobody else writes any more."""
        while True:
            try:
                return self._writer.run(work).result()
            except Overloaded as error:
                self._book.progress(accepted.job_id, 1, 1, f"waiting: {error.detail}")
                if self._book.get(accepted.job_id).stopping:
                    raise AdditionCancelled from None
                if self._stopping.wait(WAIT_SECONDS):
                    raise

    def _store(self, writer: StoreWriter, accepted: Accepted, video: EncodedVideo, texts_ND: Floats) -> None:
        from indexer.store.rows import Location

        if not self._is_wanted(accepted.video_id):
            raise AdditionCancelled  # deleted in the meantime
        path = Path(accepted.path)
        place = Location(
            path=accepted.path,
            video_id=accepted.video_id,
            size_bytes=accepted.size_bytes,
            modified_ns=path.stat().st_mtime_ns,
        )
        writer.add_locations([place])
        if writer.catalogue.state(accepted.video_id) != "indexed":
            failures = writer.add_videos([video])
            if failures:
                raise Unprocessable(
                    failures[accepted.video_id], expected="features that can be stored", next_step="report this video"
                )
        add_captions(writer, [(accepted.video_id, text) for text in accepted.captions], texts_ND)
        writer.add_tags({accepted.video_id: accepted.tags})
        if accepted.title is not None:
            writer.edit_video(accepted.video_id, title=accepted.title)


def add_captions(writer: StoreWriter, captions: Sequence[tuple[str | None, str]], rows_ND: Floats) -> list[int]:
    """Store those that are not there; the ids of all."""
    new = {
        caption: row_D
        for caption, row_D, known in zip(captions, rows_ND, writer.catalogue.caption_ids(captions), strict=True)
        if known is None
    }
    if new:
        writer.add_captions(list(new), np.stack(list(new.values())))
    return [number for number in writer.catalogue.caption_ids(captions) if number is not None]
