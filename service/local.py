"""A library of videos in this process, without a server: the same store, model and engine as ``emcl serve``.

    from service.local import open_library

    with open_library("var/mine") as library:
        library.index(["~/videos"])
        for hit in library.search("a dog jumps into a lake", k=5):
            print(hit.title, hit.moment_seconds, hit.score)

Jupyter shows a list of hits with pictures of the moments. One process writes a store at a time; a running
``emcl serve`` shows what is added here within its ``--watch-seconds``.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from service.schemas.search import FilterIn
from service.search.values import Fusion, Hit, MomentHit, Ranking, Rerank, SearchQuery, UploadQuery
from service.settings import Settings, load_settings

if TYPE_CHECKING:
    from indexer.build.progress import BuildReport
    from indexer.store.config import StoreSettings
    from indexer.store.records import Video
    from model.encoder import Encoder
    from service.search.engine import Engine

PICTURE_WIDTH = 240

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class VideoHit:
    """A segment of a video that matches. Times count from the video's first frame; ``score`` is a cosine.

    ``confidence``: how unusual the match of a text is, from 0 to 1; None where that is not known (docs/search.md).
    ``path`` is a place where the video's file was found, None if none is recorded. ``matched`` says why it is a hit:
    ``visual``, and the kinds of its texts that have words of the query; ``snippet`` is the best of these. ``moments``
    are all of the video that match, each with start, end and score, in order of time.
    """

    video_id: str
    title: str
    path: Path | None
    start_seconds: float
    end_seconds: float
    moment_seconds: float
    score: float
    tags: tuple[str, ...]
    confidence: float | None = None
    matched: tuple[str, ...] = ("visual",)
    snippet: str = ""
    moments: tuple[MomentHit, ...] = ()

    def thumbnail(self, width: int = PICTURE_WIDTH) -> bytes | None:
        """The moment as JPEG, or None if the file is no longer there or cannot be decoded."""
        from model.video.sampling import VideoError
        from service.media.pictures import picture_of

        if self.path is None or not self.path.is_file():
            return None
        try:
            return picture_of(self.path, self.moment_seconds, width)
        except VideoError:
            return None

    def _repr_html_(self) -> str:
        picture = self.thumbnail()
        shown = (
            "" if picture is None else f'<img src="data:image/jpeg;base64,{base64.b64encode(picture).decode()}"><br>'
        )
        facts = (
            f"{self.score:.3f} · {self.start_seconds:.1f}–{self.end_seconds:.1f} s, best at {self.moment_seconds:.1f} s"
        )
        return (
            f'<figure style="display:inline-block;margin:4px;width:{PICTURE_WIDTH}px">{shown}'
            f"<figcaption><b>{html.escape(self.title)}</b><br><small>{facts}</small></figcaption></figure>"
        )


@dataclass(frozen=True, kw_only=True)
class CaptionMatch:
    """A caption that fits a video. ``moment_seconds`` is the time in that video at which it fits best."""

    text: str
    score: float
    moment_seconds: float
    video_id: str | None

    def _repr_html_(self) -> str:
        return f"<div>{self.score:.3f} · {html.escape(self.text)} <small>({self.moment_seconds:.1f} s)</small></div>"


class Results(Sequence[T], Generic[T]):
    """Hits, best first. Jupyter shows them with pictures."""

    def __init__(self, found: Sequence[T]) -> None:
        self._found = tuple(found)

    def __len__(self) -> int:
        return len(self._found)

    @overload
    def __getitem__(self, place: int) -> T: ...

    @overload
    def __getitem__(self, place: slice) -> Results[T]: ...

    def __getitem__(self, place: int | slice) -> T | Results[T]:
        return Results(self._found[place]) if isinstance(place, slice) else self._found[place]

    def __repr__(self) -> str:
        return f"Results({list(self._found)!r})"

    def _repr_html_(self) -> str:
        return "".join(found._repr_html_() for found in self._found if hasattr(found, "_repr_html_"))


def open_library(
    store: str | Path, *, model: str | None = None, pretrained: str | None = None, **settings: Any
) -> LocalLibrary:
    """Open the library in the folder ``store``; it is made by the first ``index`` or ``add`` if there is none.

    ``model`` is for a new library: ``demo``, an open_clip name, or a checkpoint's path; one that exists has its own.
    ``settings`` are those of ``emcl serve`` by name, such as ``device="cuda"`` or ``threads=2``. Raises ``ValueError``
    that says what to do if the store cannot be read, or belongs to another model.
    """
    given = {"store": Path(store).expanduser(), "model": model, "pretrained": pretrained, **settings}
    return LocalLibrary(load_settings({name: value for name, value in given.items() if value is not None}))


class LocalLibrary:
    """Use ``open_library``. A context manager; safe to search from several threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._made: Engine | None = None
        if (settings.store / "CURRENT").exists():
            self._made = self._build()

    @property
    def path(self) -> Path:
        """The folder of the store."""
        return self._settings.store

    def close(self) -> None:
        """Close the index."""
        if self._made is not None:
            self._made.close()
            self._made = None

    def __enter__(self) -> LocalLibrary:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """How many videos can be found."""
        if self._made is None:
            return 0
        with self._made.live.lease() as generation:
            return generation.reader.count_videos()

    # Searching.

    def search(
        self,
        text: str,
        *,
        k: int = 10,
        tags: Sequence[str] = (),
        min_seconds: float | None = None,
        max_seconds: float | None = None,
        recorded_after: str | None = None,
        recorded_before: str | None = None,
        folder: str | Path | None = None,
        camera: str | None = None,
        min_height: int | None = None,
        rerank: Rerank = "emcl",
        fusion: Fusion = "auto",
    ) -> Results[VideoHit]:
        """The best ``k`` videos for a text, each with its best segment. Raises ``ValueError`` for an unusable query.

        ``recorded_after`` and ``recorded_before`` are dates, or dates and times (ISO 8601), inclusive; ``folder`` is
        where a file of the video is, or above; ``camera`` a part of its make and model; ``min_height`` the least
        pixels of the shorter side. ``fusion``: by pictures and words (`auto`), or either alone (`visual`, `text`).
        """
        wanted = FilterIn(
            tags=list(tags),
            min_seconds=min_seconds,
            max_seconds=max_seconds,
            recorded_after=recorded_after,
            recorded_before=recorded_before,
            folder=None if folder is None else str(Path(folder).expanduser().absolute()),
            camera=camera,
            min_height=min_height,
        ).to_filter()
        return self._search(SearchQuery(text=text, ranking=Ranking(k=k, rerank=rerank, fusion=fusion), filter=wanted))

    def similar(self, video_id: str, *, k: int = 10, rerank: Rerank = "emcl") -> Results[VideoHit]:
        """Videos that look like one of the library, itself left out."""
        return self._search(SearchQuery(video_id=video_id, ranking=Ranking(k=k, rerank=rerank)))

    def captions_for(self, video: str | Path, *, k: int = 10, rerank: Rerank = "emcl") -> Results[CaptionMatch]:
        """The best ``k`` captions of the library for a video file, of which nothing is kept.

        Raises ``ValueError`` (``model.video.sampling.VideoError``) for a file that is not a video.
        """
        from model.video.sampling import decode

        engine = self._engine()
        ranking = Ranking(k=k, rerank=rerank)
        engine.limits.check_ranking(ranking)
        batch = decode(Path(video).expanduser(), sampling=engine.sampling)
        query = UploadQuery(
            frames_FHWC=engine.encoder.preprocess(batch.frames),
            timestamps_seconds=batch.timestamps_seconds,
            ranking=ranking,
        )
        return Results(
            [
                CaptionMatch(
                    text=hit.text, score=hit.score, moment_seconds=hit.frames.moment_seconds, video_id=hit.video_id
                )
                for hit in engine.search_uploads([query])[0].captions
            ]
        )

    def videos(self, *, offset: int = 0, limit: int = 100, tags: Sequence[str] = ()) -> list[Video]:
        """A page of the videos in the library, ordered by id."""
        if self._made is None:
            return []
        with self._made.live.lease() as generation:
            return generation.reader.list_videos(offset, limit, tags=tags)

    # Changing. Each change can be found when the call returns, and survives a crash from then on.

    def index(
        self, paths: Sequence[str | Path], *, captions: str | Path | None = None, workers: int = 2
    ) -> BuildReport:
        """Index folders and files, as ``emcl index build`` does: what is known is skipped, what cannot be read is
        reported in ``failed``.

        ``captions`` is a JSON Lines or CSV file.
        """
        from indexer.build.options import BuildRequest
        from indexer.build.progress import Progress
        from indexer.build.run import build
        from indexer.store.writer import StoreWriter

        encoder, settings = self._encoder_and_settings()
        request = BuildRequest(
            paths=[str(Path(path).expanduser()) for path in paths],
            captions=None if captions is None else Path(captions).expanduser(),
            workers=workers,
        )
        with StoreWriter.open(self.path, settings=settings) as writer:
            report = build(writer, encoder, request, Progress())
        self._refresh()
        return report

    def add(
        self,
        video: str | Path,
        *,
        title: str | None = None,
        tags: Sequence[str] = (),
        captions: Sequence[str] = (),
    ) -> str:
        """Add one video file; returns its id.

        The same bytes are one video. Raises ``ValueError`` if it is unreadable.
        """
        from indexer.store.writer import StoreWriter
        from model.durable import sha256_of_file

        path = Path(video).expanduser()
        report = self.index([path], workers=1)
        if report.failed:
            raise ValueError(f"{path} cannot be added: {report.failed[0][1]}")
        video_id = sha256_of_file(path)
        if title is not None or tags or captions:
            encoder, settings = self._encoder_and_settings()
            with StoreWriter.open(self.path, settings=settings) as writer:
                new = [text for text in captions if not writer.catalogue.has_caption(video_id, text)]
                if new:
                    writer.add_captions([(video_id, text) for text in new], encoder.encode_texts(new))
                writer.add_tags({video_id: tags})
                if title is not None:
                    writer.edit_video(video_id, title=title)
            self._refresh()
        return video_id

    def remove(self, video_id: str) -> None:
        """Remove a video and its captions from the library; its file stays. Raises ``ValueError`` for an unknown id."""
        from indexer.store.writer import StoreWriter

        with StoreWriter.open(self.path) as writer:
            if writer.catalogue.state(video_id) is None:
                raise ValueError(f"{self.path} holds no video {video_id}; see `videos()`")
            writer.remove_videos([video_id])
        self._refresh()

    def _search(self, query: SearchQuery) -> Results[VideoHit]:
        engine = self._engine()
        engine.limits.check_search(query)
        hits = engine.search([query])[0].hits
        with engine.live.lease() as generation:
            paths = {hit.video_id: generation.video(hit.video_id).path for hit in hits}
        return Results([_hit(hit, paths[hit.video_id]) for hit in hits])

    def _engine(self) -> Engine:
        if self._made is None:
            raise ValueError(f"the library in {self.path} is empty; add videos with `index` or `add` first")
        return self._made

    def _build(self) -> Engine:
        from service.search.engine import build_engine

        return build_engine(self._settings)

    def _refresh(self) -> None:
        if self._made is not None:
            self._made.refresh()
        elif (self.path / "CURRENT").exists():
            self._made = self._build()

    def _encoder_and_settings(self) -> tuple[Encoder, StoreSettings]:
        from indexer.options import choose_model, new_settings, recorded_settings
        from indexer.store.config import Wishes
        from model.encoder import load_encoder

        given = self._settings
        recorded = recorded_settings(self.path)
        if self._made is not None and recorded is not None:
            return self._made.encoder, recorded
        spec = choose_model(recorded, given.model, given.pretrained)
        encoder = load_encoder(
            spec.model,
            pretrained=spec.pretrained,
            device=given.device,
            precision=given.precision,
            runtime=given.runtime,
            exports=given.exports,
        )
        fresh = new_settings(
            Wishes(), spec=spec, fingerprint=encoder.fingerprint, dim=encoder.dim, config=encoder.config
        )
        return encoder, recorded or fresh


def _hit(hit: Hit, path: str | None) -> VideoHit:
    return VideoHit(
        video_id=hit.video_id,
        title=hit.title,
        path=None if path is None else Path(path),
        start_seconds=hit.start_seconds,
        end_seconds=hit.end_seconds,
        moment_seconds=hit.moment_seconds,
        score=hit.score,
        tags=hit.tags,
        moments=hit.moments,
        confidence=hit.confidence,
        matched=hit.matched,
        snippet="".join(text for text, _ in hit.snippet),
    )
