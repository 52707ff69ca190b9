"""Videos that come over HTTP, from their acknowledgement until they are served. Knows no web framework.

    accept ──► on the disk, acknowledged ──► decoded in the sandbox ──► encoded ──► committed ──► served

A thread of its own adds accepted videos one after the other (``AdditionWork`` for one video, ``Additions`` for the
queue); the writer thread commits them (``service.library.writer_thread``). Videos that were accepted when a service
stopped are finished by the next one. Each video has a job of kind ``add-video`` in the job store.
"""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from service import errors
from service.background import Background
from service.errors import Conflict, NotFound, Overloaded, ServiceError, Unprocessable
from service.library.upload_store import Accepted, Received, UploadStore
from service.library.writer_thread import LibraryWriter
from service.media.encode_upload import QueuedEncoder, encode_video
from service.media.sandbox import KillSwitch, Sandbox

if TYPE_CHECKING:
    from indexer.store.writer import EncodedVideo, StoreWriter
    from service.jobs.store import JobStore
    from service.search.engine import Engine

logger = logging.getLogger(__name__)

T = TypeVar("T")

Floats = NDArray[np.float32]

WAIT_SECONDS = 2.0
"""Interval of attempts to add a video while another process writes the store."""

LOOK_AGAIN_SECONDS = 0.1
LOOKS = 20
"""How often something is looked for again that another thread or process may hold for a moment."""


class AdditionCancelled(Exception):  # noqa: N818 - nothing went wrong
    """The video was deleted, or its job cancelled, in the meantime."""


class AdditionWork:
    """Adds videos to the store that ``engine`` serves and ``writer`` writes, one at a time.

    ``compute`` runs a call of the encoder when its turn among the searches comes; ``job_store`` gets the progress;
    ``is_wanted`` says whether a video, by its id, was not deleted in the meantime. Waiting ends when ``stopping`` is
    set, decoding when ``kill_switch`` is activated.
    """

    def __init__(
        self,
        engine: Engine,
        writer: LibraryWriter,
        *,
        sandbox: Sandbox,
        job_store: JobStore,
        compute: Callable[[Callable[[], object]], object],
        is_wanted: Callable[[str], bool],
        stopping: threading.Event,
        kill_switch: KillSwitch,
    ) -> None:
        self._engine = engine
        self._writer = writer
        self._sandbox = sandbox
        self._job_store = job_store
        self._compute = compute
        self._is_wanted = is_wanted
        self._stopping = stopping
        self._kill_switch = kill_switch

    def add(self, accepted: Accepted) -> None:
        """Add a video whose job runs; when this returns, it is committed and served.

        Raises ``AdditionCancelled`` if it is not wanted any more, ``ServiceError`` if it cannot be added, and what
        stopped it if the service ends.
        """
        with self._engine.live.lease() as generation:
            manifest = generation.reader.manifest

        def progress(done: int, total: int) -> None:
            self._job_store.progress(accepted.job_id, done, total, "segments decoded and encoded")
            if self._job_store.get(accepted.job_id).stopping or not self._is_wanted(accepted.video_id):
                raise AdditionCancelled

        with self.open_bytes(accepted) as file:
            encoder = QueuedEncoder(self._engine.encoder, self._when_its_turn)
            video = encode_video(accepted.video_id, file, manifest, self._sandbox, encoder, progress, self._kill_switch)
        texts_ND = encoder.encode_texts(accepted.captions)
        self._commit(accepted, lambda writer: self._store(writer, accepted, video, texts_ND))

    def open_bytes(self, accepted: Accepted) -> IO[bytes]:
        """Its bytes; a removal of the same video that is under way sets them aside for a moment (``UploadStore``)."""
        for _ in range(LOOKS):
            try:
                return Path(accepted.path).open("rb")
            except FileNotFoundError:
                if self._stopping.wait(LOOK_AGAIN_SECONDS):
                    raise
        return Path(accepted.path).open("rb")

    def _when_its_turn(self, call: Callable[[], T]) -> T:
        """Run a call of the encoder, and retry while searches fill the queue."""
        while True:
            try:
                return self._compute(call)  # type: ignore[return-value]  # what the call returns
            except Overloaded:
                if self._stopping.wait(WAIT_SECONDS):
                    raise

    def _commit(self, accepted: Accepted, work: Callable[[StoreWriter], None]) -> None:
        """Run it in the writer, once no other process writes."""
        while True:
            try:
                return self._writer.run(work).result()
            except Overloaded as error:
                self._job_store.progress(accepted.job_id, 1, 1, f"waiting: {error.detail}")
                if self._job_store.get(accepted.job_id).stopping:
                    raise AdditionCancelled from None
                if self._stopping.wait(WAIT_SECONDS):
                    raise

    def _store(self, writer: StoreWriter, accepted: Accepted, video: EncodedVideo, texts_ND: Floats) -> None:
        from indexer.locations import Location

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
                writer.add_locations([], forgotten=[accepted.path])  # its bytes are not kept
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


KIND = "add-video"


@dataclass(frozen=True, kw_only=True)
class Addition:
    """The outcome of an upload: ``new`` if its bytes were not known; ``job_id`` if it is still being worked on."""

    video_id: str
    new: bool
    job_id: str | None


@dataclass(frozen=True, kw_only=True)
class VideoDetails:
    """What a client sends with a video's bytes."""

    title: str | None = None
    tags: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()


class Additions:
    """Accepts videos for the store in ``path``, which ``engine`` serves. Safe from several threads.

    ``compute`` runs a call of the encoder when its turn among the searches comes; each video has a job in
    ``job_store``; at most ``max_pending`` videos wait. ``added`` and ``failed`` count videos.
    """

    def __init__(
        self,
        path: Path,
        engine: Engine,
        writer: LibraryWriter,
        *,
        sandbox: Sandbox,
        job_store: JobStore,
        compute: Callable[[Callable[[], object]], object],
        max_pending: int,
    ) -> None:
        self.upload_store = UploadStore(path)
        self.added = 0
        self.failed = 0
        self._writer = writer
        self._engine = engine
        self._job_store = job_store
        self._max_pending = max_pending
        self.background = Background("library")
        self._lock = threading.Lock()
        self._pending: dict[str, Accepted] = {}  # in the order in which they were accepted
        self._arrived = threading.Condition(self._lock)
        self._worker: threading.Thread | None = None
        self._starter: threading.Thread | None = None
        self._stopping = threading.Event()
        self._kill_switch = KillSwitch()
        self._adding = AdditionWork(
            engine,
            writer,
            sandbox=sandbox,
            job_store=job_store,
            compute=compute,
            is_wanted=lambda video_id: video_id in self._pending,
            stopping=self._stopping,
            kill_switch=self._kill_switch,
        )

    @property
    def waiting(self) -> int:
        """Accepted videos that are not searchable yet."""
        return len(self._pending)

    def start(self) -> None:
        """Continue with videos that an earlier service accepted, once no other service owns the upload store."""
        if self.upload_store.exists:
            self._starter = threading.Thread(target=self._begin_when_free, name="library start", daemon=True)
            self._starter.start()

    def stop(self) -> None:
        """Stop: what was accepted and is not done is left for the next service."""
        self._stopping.set()
        self._kill_switch.activate()
        with self._arrived:
            self._arrived.notify_all()
        if self._starter is not None:
            self._starter.join()

    def close(self) -> None:
        """Wait for the thread to end, after the writer was closed, which may still have to deliver a result."""
        if self._worker is not None:
            self._worker.join()
        self.upload_store.close()

    def accept(self, upload: IO[bytes], details: VideoDetails, *, key_name: str | None = None) -> Addition:
        """Accept an upload; when this returns, it is on disk and will be indexed, or is indexed already.

        The same bytes are accepted once; details that come with them a second time are ignored. Raises ``Overloaded``
        if another service accepts videos for this store, or if too many wait.
        """
        self._begin()
        if len(self._pending) >= self._max_pending:
            raise Overloaded(
                f"{len(self._pending)} videos wait to be added",
                expected=f"at most {self._max_pending} waiting",
                next_step="try again after the seconds in Retry-After, or raise --max-jobs",
                retry_after_seconds=10,
            )
        received = self.upload_store.receive(upload)
        try:
            with self._lock:
                known = self._known(received)
                return known or self._accept(received, details, key_name)
        finally:
            received.path.unlink(missing_ok=True)  # where it was not moved to its place

    def _known(self, received: Received) -> Addition | None:
        pending = self._pending.get(received.video_id)
        if pending is not None:
            return Addition(video_id=received.video_id, new=False, job_id=pending.job_id)
        with self._engine.live.lease() as generation:
            video = generation.reader.video(received.video_id)
        if video is None or video.state != "indexed":
            return None
        return Addition(video_id=received.video_id, new=False, job_id=None)

    def _accept(self, received: Received, details: VideoDetails, key_name: str | None) -> Addition:
        video_id = received.video_id
        parameters = {"video_id": video_id, "size_bytes": received.size_bytes, "title": details.title}
        job = self._job_store.create(KIND, parameters, key_name=key_name, resumable=True)
        accepted = Accepted(
            video_id=video_id,
            path=str(self.upload_store.place_of(received)),
            size_bytes=received.size_bytes,
            job_id=job.job_id,
            title=details.title,
            tags=details.tags,
            captions=details.captions,
        )
        self.upload_store.accept(received, accepted)
        self._pending[video_id] = accepted
        self._arrived.notify_all()
        return Addition(video_id=video_id, new=True, job_id=job.job_id)

    def pending(self, video_id: str) -> Accepted | None:
        """A video that was accepted and is not searchable yet."""
        return self._pending.get(video_id)

    def drop(self, video_id: str) -> Accepted | None:
        """Drop a video that was accepted and is not searchable yet; None if there is none. Its bytes stay on disk."""
        with self._lock:
            dropped = self._pending.pop(video_id, None)
        if dropped is not None:
            self.upload_store.done(video_id)
            self._cancel_job(dropped.job_id)
        return dropped

    def _begin_when_free(self) -> None:
        logged = False
        while not self._stopping.is_set():
            try:
                self._begin()
            except Overloaded as error:
                if not logged:
                    logger.warning("%s; until it ends, this one only searches", error.detail)
                logged = True
                self._stopping.wait(WAIT_SECONDS)
            except Exception as error:  # a full disk, say
                self._stopping.wait(self.background.failed(error))
            else:
                self.background.succeeded()
                return

    def _begin(self) -> None:
        """Own the upload store and start the worker thread. Raises ``Overloaded`` if another service owns it."""
        with self._lock:
            if self._worker is not None:
                return
            if self._stopping.is_set():
                raise Overloaded("the service is shutting down", expected="a running one", next_step="try again later")
            self.upload_store.own()
            for accepted in self.upload_store.pending():
                self._pending[accepted.video_id] = accepted
            self._end_jobs_of_nothing()
            self.upload_store.clean()
            self._worker = threading.Thread(target=self._work, name="library", daemon=True)
            self._worker.start()

    def _end_jobs_of_nothing(self) -> None:
        """Cancel jobs whose video was never accepted: the service was killed in between."""
        self._job_store.find_lost()
        wanted = {accepted.job_id for accepted in self._pending.values()}
        for job in self._job_store.queued([KIND]):
            if job.job_id not in wanted:
                self._cancel_job(job.job_id)

    def _work(self) -> None:
        while not self._stopping.is_set():
            self.background.attempt(self._work_on_next, self._stopping.wait)

    def _work_on_next(self) -> None:
        """Work on the video that has waited longest; without one, wait for it."""
        with self._arrived:
            while not self._pending and not self._stopping.is_set():
                self._arrived.wait()
            accepted = next(iter(self._pending.values()), None)
        if accepted is not None and not self._stopping.is_set():
            self.work_on(accepted)

    def work_on(self, accepted: Accepted) -> None:
        """Decode, encode and store one accepted video; a failure that cannot be recorded is tried again."""
        try:
            if self._start_job(accepted):
                self._add(accepted)
        except Exception as error:
            if self._stopping.is_set():
                self._job_store.requeue(accepted.job_id)
                return
            if errors.is_full(error):
                logger.warning("video %s waits for space on a disk: %s", accepted.video_id[:12], error)
                self._wait_for_space(accepted)
                return
            if isinstance(error, ServiceError):
                logger.info("video %s cannot be added: %s", accepted.video_id[:12], error.detail)
            else:
                logger.exception("video %s could not be added", accepted.video_id[:12])
            self._fail(accepted, error)

    def _wait_for_space(self, accepted: Accepted) -> None:
        """Queue its job again as soon as the disk has room; the video stays first in line."""
        while not self._stopping.wait(WAIT_SECONDS):
            try:
                self._job_store.requeue(accepted.job_id)
                return
            except (OSError, sqlite3.Error) as error:
                if not errors.is_full(error):
                    raise

    def _start_job(self, accepted: Accepted) -> bool:
        """Start its job; False if the job was cancelled, and the video with it, or has succeeded already."""
        job = self._job_store.get(accepted.job_id)
        if job.state == "succeeded":  # and the service was killed right then
            self._forget(accepted)
            return False
        if job.state in ("lost", "failed"):
            self._job_store.resume(job.job_id)
        if self._job_store.claim(job.job_id, pid=os.getpid(), host=socket.gethostname()) is None:
            if self._job_store.get(job.job_id).state == "running":
                # Of a service that was killed. Another process looked at that moment whether it is lost: look again.
                self._stopping.wait(LOOK_AGAIN_SECONDS)
                self._job_store.find_lost()
                return False
            self._drop(accepted)
            return False
        return True

    def _add(self, accepted: Accepted) -> None:
        try:
            self._adding.add(accepted)
        except AdditionCancelled:
            self._drop(accepted)
            return
        with self._lock:
            self._pending.pop(accepted.video_id, None)
        self._job_store.succeed(accepted.job_id, {"video_id": accepted.video_id})
        self.upload_store.done(accepted.video_id)  # last: a service killed before this does the rest again
        self.added += 1

    def _fail(self, accepted: Accepted, error: Exception) -> None:
        self._forget(accepted)
        self.upload_store.remove(accepted.video_id)
        self.failed += 1
        reason = error.detail if isinstance(error, ServiceError) else "the service failed; its log says more"
        try:
            self._job_store.fail(accepted.job_id, reason)
        except ServiceError as trouble:  # the job store was lost
            logger.warning("job %s cannot be ended: %s", accepted.job_id, trouble)

    def _drop(self, accepted: Accepted) -> None:
        self._forget(accepted)
        self.upload_store.remove(accepted.video_id)
        if self._job_store.get(accepted.job_id).state == "running":
            self._job_store.end_cancelled(accepted.job_id)

    def _forget(self, accepted: Accepted) -> None:
        self.upload_store.done(accepted.video_id)
        with self._lock:
            self._pending.pop(accepted.video_id, None)

    def _cancel_job(self, job_id: str) -> None:
        try:
            self._job_store.cancel(job_id)
        except (Conflict, NotFound) as error:
            logger.debug("job %s had ended: %s", job_id, error)
