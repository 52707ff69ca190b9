"""One indexing run, in named phases: discover, hash, reconcile, shards and URLs, captions, encode, publish.

Every phase commits what it has done, so a run that is killed or interrupted is continued by running the same command
again. A video that cannot be read is recorded with its reason and never stops the run.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from indexer.ann.recipe import check
from indexer.build.archives import index_packed
from indexer.build.decode import DecodeSettings
from indexer.build.decode_pool import ReaderSettings
from indexer.build.encode import FeatureEncoder, VideoEncoding, encode_captions
from indexer.build.options import BuildRequest
from indexer.build.progress import BuildReport, Progress
from indexer.build.recordings import fill_recordings
from indexer.build.transcripts import attach_transcripts
from indexer.errors import Damaged, IndexFactoryError, ModelMismatch, NotAStore, SourceError, WrongPreprocessing
from indexer.locations import Location, shard_of
from indexer.sources.captions import Resolved, attach, read_caption_file
from indexer.sources.discover import Discovery, discover, hash_files, missing
from indexer.sources.partition import split
from indexer.sources.url import RemoteFiles
from indexer.store import generation
from indexer.store.config import Manifest, StoreSettings
from indexer.store.writer import StoreWriter

LOCATION_BATCH = 256
"""Hashed files committed together, so that a killed run does not hash everything again."""

MOST_WORKERS = 8
"""Default number of decoding processes; more rarely help, because there is one encoder."""

BYTES_PER_TASK = 8 << 20
"""A guess at how much of a file one decode task covers; only used to not start more workers than there is work."""


def build(writer: StoreWriter, encoder: FeatureEncoder, request: BuildRequest, progress: Progress) -> BuildReport:
    """Index ``request.paths`` and their captions into the open store, and publish what is new.

    Raises ``SourceError`` and ``CaptionFileError`` before anything is encoded, ``ModelMismatch`` for another model's
    store. ``KeyboardInterrupt`` leaves everything committed so far.
    """
    check_model(writer.settings, encoder, writer.path)
    entries = [] if request.captions is None else read_caption_file(request.captions)
    with RemoteFiles(request.protocols, request.fetch_timeout_seconds) as remote:
        discovery = discover(request.paths, exclude=writer.path, remote=remote, within=request.within)
        if request.unsettled:
            settled = [found for found in discovery.files if found.path not in request.unsettled]
            discovery = replace(discovery, files=settled)
        mine, others = split(discovery, request.partition)
        report = BuildReport(
            found=len(mine.files), failed=list(mine.unreadable), passed_over=dict(discovery.passed_over)
        )
        before = writer.catalogue.locations()
        found = _hash(writer, mine, before, request, report, progress)
        gone = _reconcile(writer, before, found, mine, request, report)
        if request.prunes and not request.force_prune:
            refuse_mass_prune(writer.path, before, _without_place(writer, gone), discovery)
        _index_packed(writer, encoder, mine, remote, request, report, progress)
    attached = attach(
        writer.catalogue.locations(), entries, mine, others, within=request.within
    )  # before hours are spent on encoding files
    report.unmatched += attached.unmatched
    report.notes += attached.notes
    fill_recordings(writer, found, progress)
    _encode_videos(writer, encoder, found, request, report, progress)
    writer.add_tags(attached.texts.tags)
    _encode_captions(writer, encoder, attached.texts, report, progress)
    transcribed = attach_transcripts(writer, found, request.transcripts, within=request.within)
    report.transcripts = transcribed.count
    report.unmatched += transcribed.unused
    report.notes += transcribed.notes
    if request.prunes:
        orphans = _without_place(writer, gone)
        try:
            if not request.force_prune:  # shards may have lost members
                refuse_mass_prune(writer.path, before, orphans, discovery)
            writer.remove_videos(orphans)
            report.removed = len(orphans)
        except SourceError as error:  # what was encoded is published all the same
            report.failed.append((str(writer.path), str(error)))
    report.manifest = publish_if_changed(writer, encoder, progress)
    return report


def refuse_mass_prune(store: Path, before: Sequence[Location], orphans: Collection[str], discovery: Discovery) -> None:
    """Raise ``SourceError`` if a named folder holds no video any more, or most of what was below them would go."""
    places = {*(found.path for found in discovery.files), *(Path(source.name) for source in discovery.packed)}
    shards = {source.name for source in discovery.packed}
    known = set()
    for folder in discovery.folders:
        below = {place.video_id for place in before if Path(place.path).is_relative_to(folder)}
        if below & set(orphans) and not any(path.is_relative_to(folder) for path in places):
            raise SourceError(
                f"{folder} holds no video, but {store} knows {len(below)} below it; if its disk is not mounted, mount "
                "it; if they are really gone, remove them with --force-prune"
            )
        known |= below
    known |= {place.video_id for place in before if shard_of(place.path) in shards}
    lost = known & set(orphans)
    if 2 * len(lost) > len(known):
        raise SourceError(
            f"--prune would remove {len(lost)} of the {len(known)} videos that {store} knows there, which is more than "
            "half; if their files are really gone, use --force-prune"
        )


def check_model(settings: StoreSettings, encoder: FeatureEncoder, store: Path) -> None:
    """Raise ``ModelMismatch`` unless ``encoder`` is the model that the store was built with."""
    if encoder.fingerprint != settings.fingerprint:
        if settings.fingerprint in encoder.former_fingerprints():
            raise WrongPreprocessing(
                str(store), model=settings.model_spec.model or "default", pretrained=settings.model_spec.pretrained
            )
        raise ModelMismatch(
            f"{store} was built with checkpoint {settings.fingerprint[:12]} (--model "
            f"{settings.model_spec.model or 'default'}), the loaded one is {encoder.fingerprint[:12]}; leave --model "
            "out to use the store's, or index the videos into another store"
        )


def publish_if_changed(writer: StoreWriter, encoder: FeatureEncoder, progress: Progress) -> Manifest | None:
    """Publish unless the current generation holds all that is committed; None if there is nothing to search yet."""
    current = current_manifest(writer.path)
    if current is not None and current.revision == writer.catalogue.revision:
        return current
    if current is None and not writer.catalogue.has_content():
        return None
    return publish(writer, encoder, progress)


def publish(
    writer: StoreWriter, encoder: FeatureEncoder, progress: Progress, settings: StoreSettings | None = None
) -> Manifest:
    """Publish a generation, showing its phases; with ``settings``, of another kind of index.

    If that index cannot be built (``IndexFactoryError``) the store keeps its former settings and generation.
    """
    former = writer.settings
    if settings is not None:
        check(settings, settings.dim)  # refused before the catalogue has changed
    with progress.phase("publish", len(generation.PHASES), "step") as bar:

        def phase(name: str) -> None:
            bar.note(name)
            bar.advance()

        writer.change_settings(settings or former)
        try:
            return writer.publish(encoder, phase)
        except IndexFactoryError:
            writer.change_settings(former)
            raise


def current_manifest(store: Path) -> Manifest | None:
    """The manifest of the current generation; None if there is none, or if its files are damaged."""
    try:
        manifest = generation.read_current(store)
        generation.check_files(store / generation.GENERATIONS / manifest.generation, manifest)
    except (NotAStore, Damaged):
        return None
    return manifest


def _hash(
    writer: StoreWriter,
    discovery: Discovery,
    before: Sequence[Location],
    request: BuildRequest,
    report: BuildReport,
    progress: Progress,
) -> list[Location]:
    """Identify the video of each file, and record its path."""
    known = {location.path: location for location in before}
    trusted = {} if request.rehash else known
    found: list[Location] = []
    new: list[Location] = []
    with progress.phase("hash", len(discovery.files), "file") as bar:
        for hashed in hash_files(discovery.files, trusted, threads=min(4, os.cpu_count() or 1)):
            bar.advance()
            if hashed.location is None:
                report.failed.append((str(hashed.found.path), hashed.reason or ""))
                continue
            found.append(hashed.location)
            if known.get(hashed.location.path) != hashed.location:
                new.append(hashed.location)
            if len(new) >= LOCATION_BATCH:
                writer.add_locations(new)
                new = []
    writer.add_locations(new)
    return found


def _reconcile(
    writer: StoreWriter,
    before: Sequence[Location],
    found: Sequence[Location],
    discovery: Discovery,
    request: BuildRequest,
    report: BuildReport,
) -> set[str]:
    """Report what happened to files that were indexed earlier; returns the locations that are gone."""
    now = {location.path: location.video_id for location in found}
    gone = {location.path: location.video_id for location in missing(before, discovery, exclude=writer.path)}
    places: dict[str, set[str]] = defaultdict(set)
    for location in writer.catalogue.locations():
        if location.path not in gone:
            places[location.video_id].add(location.path)
    moved = [path for path, video_id in gone.items() if places[video_id]]
    writer.add_locations([], forgotten=moved)
    for path in moved:
        report.notes.append(f"{path} is now {min(places[gone[path]])}")
    kept = "removed from the store" if request.prunes else "kept; --prune removes it"
    for path in sorted(gone.keys() - set(moved)):
        report.notes.append(f"{path} is gone; its video was {kept}")
    for location in before:
        if now.get(location.path, location.video_id) != location.video_id and not places[location.video_id]:
            report.notes.append(f"{location.path} has new content; its former video was {kept}")
    duplicates = len(found) - len(set(now.values()))
    if duplicates:
        report.notes.append(f"{duplicates} files have the same bytes as another one and are indexed once")
    return set(gone)


def _without_place(writer: StoreWriter, gone: Collection[str]) -> list[str]:
    """Videos without any remaining file."""
    somewhere = {place.video_id for place in writer.catalogue.locations() if place.path not in gone}
    return sorted(writer.catalogue.states().keys() - somewhere)


def _index_packed(
    writer: StoreWriter,
    encoder: FeatureEncoder,
    discovery: Discovery,
    remote: RemoteFiles,
    request: BuildRequest,
    report: BuildReport,
    progress: Progress,
) -> None:
    reader = _reader(writer, encoder, request)
    index_packed(writer, encoder, discovery.packed, remote, reader, request, report, progress)


def _encode_videos(
    writer: StoreWriter,
    encoder: FeatureEncoder,
    found: Sequence[Location],
    request: BuildRequest,
    report: BuildReport,
    progress: Progress,
) -> None:
    states = writer.catalogue.states()
    waiting: dict[str, Location] = {}
    for location in found:
        if states[location.video_id] != "indexed":
            waiting.setdefault(location.video_id, location)
    if not waiting:
        return
    tasks = sum(1 + location.size_bytes // BYTES_PER_TASK for location in waiting.values())
    reader = _reader(writer, encoder, request, tasks)
    failed: list[tuple[str, str]] = []
    with progress.phase("videos", len(waiting), "video") as bar:

        def done(location: Location, failure: str | None, flaw: str | None) -> None:
            bar.advance()
            if failure is not None:
                failed.append((location.path, failure))
                bar.note(f"{len(failed)} failed")
                return
            report.indexed += 1
            if flaw is not None:
                report.notes.append(f"{location.path} was indexed in part: {flaw}")

        VideoEncoding(encoder, writer, done).run(waiting.values(), reader)
    report.failed += sorted(failed)


def _reader(
    writer: StoreWriter, encoder: FeatureEncoder, request: BuildRequest, tasks: int | None = None
) -> ReaderSettings:
    workers = request.workers or min(MOST_WORKERS, _cores())
    decode = DecodeSettings(
        sampling=writer.settings.sampling,
        segment_seconds=writer.settings.segment_seconds,
        preprocess=encoder.preprocess,
    )
    return ReaderSettings(
        decode=decode,
        workers=workers if tasks is None else min(workers, tasks),
        timeout_seconds=request.timeout_seconds,
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _encode_captions(
    writer: StoreWriter, encoder: FeatureEncoder, texts: Resolved, report: BuildReport, progress: Progress
) -> None:
    new = [caption for caption in texts.captions if not writer.catalogue.has_caption(*caption)]
    if not new:
        return
    with progress.phase("captions", len(new), "caption") as bar:
        encode_captions(new, encoder, writer, bar.advance)
    report.captions += len(new)
    if cut := sum(encoder.truncates(text) for _, text in new):
        report.notes.append(f"{cut} of {len(new)} captions are longer than the model reads; their ends are ignored")
