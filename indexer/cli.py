"""The commands of ``emcl index`` and ``emcl store``.

Exit codes: 0 all done; 1 an error that is printed; 2 wrong usage; 3 done, but some files or captions could not be used
(they are listed); 130 interrupted, committed work is kept. Heavy modules are imported inside the commands.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from indexer.build.options import BuildOptions
from indexer.store.config import Wishes
from model.cli_options import EncoderOptions, Only, from_models
from model.terminal import printable

if TYPE_CHECKING:
    from indexer.build.options import BuildRequest
    from indexer.build.progress import BuildReport
    from indexer.store.compact import Compaction
    from indexer.store.config import IndexReport, Manifest, ModelSpec, StoreSettings
    from indexer.store.verify import Verification
    from indexer.store.writer import StoreWriter
    from model.encoder import Encoder

SHOWN_NOTES = 20

INCOMPLETE, INTERRUPTED = 3, 130

Store = Annotated[Path, typer.Option(help="Folder of the store.")]
DeviceOnly = Annotated[EncoderOptions, Only("device")]
ModelOnly = Annotated[EncoderOptions, Only("model", "pretrained", "device")]
Paths = Annotated[
    list[str],
    typer.Argument(metavar="PATH...", help="Folders, video files, tar shards, globs in quotes, or URLs."),
]
MorePaths = Annotated[list[str] | None, typer.Argument(metavar="PATH...", help="As for build.")]
ProgressFile = Annotated[
    Path | None, typer.Option("--progress-file", help="Append progress to this file, as JSON lines.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

app = typer.Typer(
    help="Index videos and captions into a store that can be searched. Exit code 3: done, but some files or captions "
    "could not be used; they are listed.",
    no_args_is_help=True,
)


def print_report(report: BuildReport) -> None:
    """What an indexing run did: results on stdout, what could not be used and other notes on stderr."""
    for note in report.notes[:SHOWN_NOTES]:
        typer.echo(printable(f"note: {note}"), err=True)
    if len(report.notes) > SHOWN_NOTES:
        typer.echo(f"note: … and {len(report.notes) - SHOWN_NOTES} more", err=True)
    for path, reason in report.failed:
        typer.echo(printable(f"failed: {path}: {reason}"), err=True)
    for row in report.unmatched:
        typer.echo(printable(f"unused: {row}"), err=True)
    removed = f", {report.removed} removed" if report.removed else ""
    failed = f", {len(report.failed)} failed" if report.failed else ""
    transcripts = f", {report.transcripts} transcripts read" if report.transcripts else ""
    typer.echo(
        f"{report.found} files found, {report.indexed} videos indexed, "
        f"{report.captions} captions added{transcripts}{removed}{failed}"
    )
    if passed_over := report.passed_over_text():
        typer.echo(f"passed over, because their names are not those of videos: {passed_over}", err=True)
    if report.manifest is None:
        typer.echo("nothing to search yet, so nothing was published", err=True)
        return
    print_manifest(report.manifest)


def print_verification(found: Verification, *, as_json: bool) -> None:
    """What ``emcl index verify`` found."""
    if as_json:
        indexes = {side: report.model_dump() for side, report in found.indexes.items()}
        typer.echo(json.dumps({**vars(found), "indexes": indexes}, indent=2))
        return
    for note in found.notes:
        typer.echo(f"note: {note}")
    for problem in found.problems:
        typer.echo(f"damaged: {problem}")
    recall = ", ".join(f"recall@10 of {side} {value:.3f}" for side, value in found.recall.items())
    for line in index_lines(found.indexes):
        typer.echo(line)
    checked = f"{found.checked_segments} segments and {found.checked_captions} captions checked"
    typer.echo("; ".join(part for part in (checked, recall, f"{len(found.problems)} problems") if part))


def print_compaction(writer: StoreWriter, done: Compaction) -> None:
    """What ``emcl index compact`` gained, and what is freed only later."""
    from indexer.store.compact import waiting_bytes

    gained = done.before_bytes - done.after_bytes
    typer.echo(f"{done.shards} shards rewritten: {gained} of {done.before_bytes} bytes gained")
    if waiting := waiting_bytes(writer):
        typer.echo(
            f"{waiting} bytes of former shards are freed when the generation that uses them is removed: with the next "
            "publication, or now with `emcl index compact --drop-former`"
        )


def print_manifest(manifest: Manifest) -> None:
    """The generation that is current now, and how much it holds."""
    counts = manifest.counts
    typer.echo(
        f"generation {manifest.generation} ({manifest.factory}): {counts.videos} videos, {counts.segments} segments, "
        f"{counts.captions} captions"
    )
    for line in index_lines(manifest.indexes):
        typer.echo(line)


def print_correction(store: Path) -> None:
    """Which form of EMCL the current generation applies; nothing if none was published."""
    from indexer.errors import NotAStore
    from indexer.store.generation import GENERATIONS, current_name, load_correction
    from model.emcl.active import published_emcl

    try:
        folder = store / GENERATIONS / current_name(store)
    except NotAStore:
        return
    typer.echo(f"EMCL: {published_emcl(load_correction(folder)).text}", err=True)
    print_notice(store)


def print_notice(store: Path) -> None:
    """Warn on stderr if the demo model indexed anything but its own clips."""
    from indexer.errors import NotAStore
    from indexer.store.demo_notice import demo_notice, is_of_the_demo_model
    from indexer.store.generation import read_current
    from indexer.store.reader import StoreReader

    try:
        if not is_of_the_demo_model(read_current(store)):
            return  # opening reads every file of the generation: seconds for a large one
    except NotAStore:
        return
    with StoreReader.open(store) as reader:
        notice = demo_notice(reader)
    if notice:
        typer.echo(f"warning: {notice}", err=True)


def index_lines(indexes: Mapping[str, IndexReport]) -> list[str]:
    """Kind, size and recall of each index that is not empty."""
    lines = []
    for side, report in indexes.items():
        if report.vectors:
            options = f" ({report.options})" if report.options else ""
            place = ", read from its file" if report.mapped else ""
            found = f"recall@{report.depth} {report.recall:.4f} on {report.queries} queries ({report.source})"
            lines.append(
                f"index of {side}: {report.factory}{options}, {report.vectors} vectors of {report.bytes_per_vector:g} "
                f"bytes{place}, {found if report.queries else 'exact'}"
            )
    return lines


def print_videos(videos: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """A line for each of the catalogue's summaries."""
    if as_json:
        typer.echo(json.dumps(videos, ensure_ascii=False, indent=2))
        return
    for video in videos:
        seconds = "" if video["duration_seconds"] is None else f"{video['duration_seconds']:.1f} s"
        what = f"{video['segments']} segments, {video['captions']} captions" if video["segments"] else ""
        path = video["paths"][0] if video["paths"] else "(no file)"
        line = f"{video['video_id'][:12]}  {video['state']:<8} {seconds:>9}  {path}  {what}  {video['reason'] or ''}"
        typer.echo(printable(line.rstrip()))
    typer.echo(f"{len(videos)} videos", err=True)


@app.command()
@from_models
def build(
    paths: Paths,
    store: Store,
    encoding: EncoderOptions,
    wishes: Wishes,
    options: BuildOptions,
    progress_file: ProgressFile = None,
) -> None:
    """Index videos into a store; creates it if needed. Run it again after an interruption, or when files changed."""
    from indexer.build.options import BuildRequest
    from indexer.options import check_wishes, recorded_settings
    from indexer.sources.discover import check_paths

    check_paths(paths, options.protocols)  # typos are reported before weights are loaded and a store is created
    recorded = recorded_settings(store)
    if recorded is not None:
        check_wishes(recorded, wishes, store)
    encoder, spec = _load(recorded, encoding, paths)
    request = BuildRequest(paths=paths, **dict(options))
    _run(store, recorded or _new(wishes, encoder, spec), encoder, request, progress_file)


@app.command("watch")
@from_models
def watch_command(
    paths: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Folders with videos, searched recursively.")
    ],
    store: Store,
    encoding: DeviceOnly,
    options: Annotated[BuildOptions, Only("workers", "timeout_seconds", "prune")],
    settle_seconds: Annotated[
        float, typer.Option(min=0.1, help="A file is indexed when it has not changed for this long.")
    ] = 5.0,
    rescan_seconds: Annotated[
        float, typer.Option(min=1, help="Scan all folders this often, even if no change was reported.")
    ] = 600.0,
) -> None:
    """Keep a store up to date with folders: index them now, and again whenever files change, until interrupted.

    Files that are still growing wait. If a folder disappears, the command waits for it and removes nothing. The store
    may be served meanwhile.
    """
    import signal
    import threading

    from indexer.build.options import BuildRequest
    from indexer.build.progress import TerminalProgress
    from indexer.build.run import build as build_store
    from indexer.build.watch import watch_folders
    from indexer.errors import SourceError
    from indexer.store.writer import StoreWriter

    recorded = _recorded(store)
    folders = [path.absolute() for path in paths]
    for folder in folders:
        if folder.exists() and not folder.is_dir():
            raise SourceError(f"{folder} is a file, expected a folder; index a file with `emcl index add`")
    encoder, _ = _load(recorded, encoding)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def index(present: Sequence[Path], unsettled: Collection[Path]) -> None:
        request = BuildRequest(
            paths=[str(path) for path in present],
            unsettled=frozenset(unsettled),
            **{**dict(options), "prune": options.prune and not unsettled},
        )
        with StoreWriter.open(store, settings=recorded) as writer:
            report = build_store(writer, encoder, request, TerminalProgress())
        if report.indexed or report.removed or report.failed or report.captions or report.transcripts:
            print_report(report)
            print_notice(store)

    typer.echo(f"watching {', '.join(map(str, folders))}; Ctrl-C stops it", err=True)
    with _interruptible():
        watch_folders(folders, index, settle_seconds=settle_seconds, rescan_seconds=rescan_seconds, stop=stop)


@app.command()
@from_models
def add(
    store: Store,
    encoding: Annotated[EncoderOptions, Only("device", "runtime", "precision", "exports")],
    options: Annotated[
        BuildOptions,
        Only(
            "captions",
            "transcripts",
            "workers",
            "timeout_seconds",
            "protocols",
            "keep_media",
            "retry_failed",
            "within",
        ),
    ],
    paths: MorePaths = None,
    progress_file: ProgressFile = None,
) -> None:
    """Add videos, captions or transcripts to a store, with the model and settings that it was built with."""
    from indexer.build.options import BuildRequest
    from indexer.sources.discover import check_paths

    if not paths and options.captions is None and options.transcripts is None:
        raise typer.BadParameter("give videos to add, --captions FILE or --transcripts FOLDER")
    recorded = _recorded(store)
    check_paths(paths or [], options.protocols)
    encoder, _ = _load(recorded, encoding, paths or [])
    _run(store, recorded, encoder, BuildRequest(paths=paths or [], **dict(options)), progress_file)


@app.command()
@from_models
def remove(
    videos: Annotated[list[str], typer.Argument(metavar="VIDEO_ID|PATH...", help="Ids, or files that were indexed.")],
    store: Store,
    encoding: DeviceOnly,
) -> None:
    """Remove videos with their captions, under all their paths. Files are not touched."""
    from indexer.build.progress import TerminalProgress
    from indexer.build.run import check_model, publish
    from indexer.store.writer import StoreWriter

    encoder, _ = _load(_recorded(store), encoding)
    with StoreWriter.open(store) as writer:
        check_model(writer.settings, encoder, store)
        writer.remove_videos(writer.catalogue.find_videos(videos))
        manifest = publish(writer, encoder, TerminalProgress())
    print_manifest(manifest)
    print_notice(store)


@app.command("list")
def list_videos(store: Store, as_json: Json = False) -> None:
    """List every video with its state, including unreadable ones with the reason."""
    from indexer.store.catalogue import CatalogueReader
    from indexer.store.generation import CATALOGUE

    with closing(CatalogueReader.open_readonly(store / CATALOGUE)) as catalogue:
        videos = catalogue.summaries()
    print_videos(videos, as_json=as_json)
    print_correction(store)


@app.command()
def verify(
    store: Store,
    min_recall: Annotated[float, typer.Option(min=0, max=1, help="Lowest recall@10 against exact search.")] = 0.9,
    as_json: Json = False,
) -> None:
    """Check every checksum, and the indexes against exact search. Exit code 1 if anything is wrong."""
    from indexer.build.progress import TerminalProgress
    from indexer.store.verify import verify as verify_store

    with TerminalProgress().phase("verify", 0, "row") as bar:
        found = verify_store(store, bar.advance)
    for side, recall in found.recall.items():
        if recall < min_recall:
            found.problems.append(
                f"recall@10 of {side} is {recall:.3f}, expected at least {min_recall:g}; search more of the index "
                "(`emcl index rebuild --index-options nprobe=…`), or rebuild with --index Flat"
            )
    print_verification(found, as_json=as_json)
    if found.problems:
        raise typer.Exit(1)


@app.command()
@from_models
def rebuild(
    store: Store,
    wishes: Annotated[Wishes, Only("index", "index_options", "index_memory", "index_recall")],
    encoding: Annotated[
        EncoderOptions,
        Only("pretrained", "device", model="The same weights under another name, such as a calibrated checkpoint."),
    ],
) -> None:
    """Publish a new generation from what is stored, without decoding: other FAISS index, newly fitted EMCL map."""
    from indexer.build.progress import TerminalProgress
    from indexer.build.recordings import fill_recordings
    from indexer.build.run import check_model, publish
    from indexer.options import with_index
    from indexer.store.writer import StoreWriter

    recorded = _recorded(store)
    encoder, spec = _load(recorded, encoding)
    with StoreWriter.open(store) as writer:
        check_model(writer.settings, encoder, store)
        fill_recordings(writer, writer.catalogue.locations(), TerminalProgress())
        settings = with_index(writer.settings, wishes).model_copy(update={"model_spec": spec})
        manifest = publish(writer, encoder, TerminalProgress(), settings)
    print_manifest(manifest)
    print_correction(store)


@app.command()
@from_models
def bank(
    store: Store,
    encoding: DeviceOnly,
    captions: Annotated[
        Path,
        typer.Option(
            exists=True,
            help="Texts like future queries, preferably the model's training captions: JSON lines with `captions`, or "
            ".txt with one per line.",
        ),
    ],
    size: Annotated[int, typer.Option(min=1, help="Maximum number of texts, drawn at random.")] = 5000,
    seed: Annotated[int, typer.Option(help="Seed of that draw.")] = 0,
    beta: Annotated[float, typer.Option(min=0.01, max=1000, help="QB-Norm's inverse temperature.")] = 20.0,
    top: Annotated[int, typer.Option(min=1, help="Segments that each text marks as hubs.")] = 1,
) -> None:
    """Use texts as the query bank: fit EMCL's hub bases on them, publish, and compute the statistics of QB-Norm.

    Hub bases correct all searches; `normalise: qb-norm` is chosen per search. Run it again after many videos were
    added: QB-Norm's statistics cover only the segments indexed so far, while hub bases also correct new ones. A running
    service uses it after its index is reloaded (`POST /v1/index/reload`).
    """
    from indexer.build.progress import TerminalProgress
    from indexer.build.run import check_model, publish
    from indexer.store.bank import write_bank_texts
    from indexer.store.query_bank import compute_bank, report_lines, write_bank
    from indexer.store.reader import StoreReader
    from indexer.store.writer import StoreWriter
    from model.evaluate.query_bank import open_bank

    recorded = _recorded(store)
    texts = open_bank(str(captions), None, size=size, seed=seed, beta=beta, top=top)
    encoder, _ = _load(recorded, encoding)
    check_model(recorded, encoder, store)
    with StoreReader.open(store) as reader:
        if len(reader.segment_ids()) == 0:
            raise ValueError(f"{store} holds no segment to compute a query bank for; index videos first")
    with StoreWriter.open(store) as writer:
        write_bank_texts(store, encoder.encode_texts(texts.texts), f"{len(texts.texts):,} texts of {captions.name}")
        publish(writer, encoder, TerminalProgress())
    with StoreReader.open(store, fingerprint=encoder.fingerprint) as reader:
        computed = compute_bank(reader, encoder, texts)
    write_bank(store, computed)
    for line in report_lines(computed, texts.texts):
        typer.echo(line)
    print_correction(store)


@app.command()
@from_models
def bases(
    store: Store,
    encoding: DeviceOnly,
    pairs: Annotated[
        Path,
        typer.Option(
            exists=True,
            help="Labelled videos, other than those for evaluation: JSON lines of {video, captions}, a folder with "
            "captions.jsonl, or a data set's configuration.",
        ),
    ],
    split: Annotated[Literal["train", "val"], typer.Option(help="Which split of a data set.")] = "train",
    weight: Annotated[
        float, typer.Option(min=0.0, max=10.0, help="Weight of the bases beside the cosine; 0 removes them.")
    ] = 0.2,
    regularisation: Annotated[float, typer.Option(min=0.001, max=100.0, help="Of both covariances.")] = 1.0,
) -> None:
    """Fit EMCL's paired bases on labelled videos, store them, and publish. Nothing is measured.

    `emcl calibrate --store` chooses weight and regularisation and keeps only what gains beyond chance.
    """
    from dataclasses import replace

    from indexer.build.progress import TerminalProgress
    from indexer.build.run import check_model, publish
    from indexer.store.bank import read_settings, write_settings
    from indexer.store.writer import StoreWriter
    from model.data.registry import open_for_evaluation
    from model.emcl.correction import CorrectionSettings
    from model.emcl.paired import PairedBases
    from model.evaluate.corpus import encode_corpus

    recorded = _recorded(store)
    encoder, _ = _load(recorded, encoding)
    check_model(recorded, encoder, store)
    labelled = open_for_evaluation(pairs, split, allow_missing=False)
    corpus = encode_corpus(encoder, labelled.clips)
    pooled_VD = encoder.pool(corpus.features_VFD, corpus.mask_VF)
    found = PairedBases.fit(
        corpus.text_TD,
        pooled_VD[corpus.video_of_text_T],
        weight=weight,
        regularisation=regularisation,
        source=labelled.name,
    )
    settings = read_settings(store) or encoder.calibrated or CorrectionSettings()
    with StoreWriter.open(store) as writer:
        write_settings(store, replace(settings, paired=found, fingerprint=encoder.fingerprint))
        manifest = publish(writer, encoder, TerminalProgress())
    print_manifest(manifest)
    print_correction(store)


@app.command()
@from_models
def create(
    store: Annotated[Path, typer.Option(help="Folder of the new store.")],
    encoding: ModelOnly,
    wishes: Annotated[Wishes, Only("segment_seconds", "index", "index_options", "index_memory", "index_recall")],
) -> None:
    """Create an empty store, so that a service can start and receive its first videos with `POST /v1/videos`.

    Until the next publication (`emcl index build|add|rebuild`, or by a service with enough videos) stage 1 ranks
    without an EMCL map: there is no corpus yet to fit one on.
    """
    from indexer.errors import StoreError
    from indexer.options import recorded_settings
    from indexer.store.writer import StoreWriter
    from model.emcl.em import FrozenMap

    if recorded_settings(store) is not None:
        raise StoreError(f"{store} holds a store already; add to it with `emcl index add`, or name another folder")
    encoder, spec = _load(None, encoding)
    settings = _new(wishes, encoder, spec)
    with StoreWriter.open(store, settings=settings) as writer:
        manifest = writer.publish(encoder, empty_map=FrozenMap.neutral(encoder.dim))
    print_manifest(manifest)


@app.command()
@from_models
def merge(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE...", help="Stores of one model; they are only read.")],
    store: Annotated[Path, typer.Option(help="Folder of the merged store; created if needed, else extended.")],
    encoding: DeviceOnly,
) -> None:
    """Merge stores, such as the parts of `build --partition`, without encoding anything.

    A video that is in several is copied once; captions and tags are combined. Run it again after an interruption.
    """
    from indexer.build.progress import TerminalProgress
    from indexer.build.run import check_model, publish_if_changed
    from indexer.store.merge import count_videos, read_merge_settings
    from indexer.store.merge import merge as merge_stores
    from indexer.store.writer import StoreWriter

    settings = read_merge_settings(stores, store)
    encoder, _ = _load(settings, encoding)
    check_model(settings, encoder, stores[0])
    progress = TerminalProgress()
    with StoreWriter.open(store, settings=settings) as writer:
        with progress.phase("merge", count_videos(stores), "video") as bar:
            report = merge_stores(writer, stores, bar.advance)
        manifest = publish_if_changed(writer, encoder, progress)
    for note in report.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(
        f"{report.videos} videos and {report.captions} captions copied, {report.known_videos} videos were there already"
    )
    if manifest is None:
        typer.echo("nothing to search yet, so nothing was published", err=True)
        return
    print_manifest(manifest)
    print_notice(store)


@app.command()
@from_models
def compact(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the store.")],
    encoding: DeviceOnly,
    drop_former: Annotated[
        bool,
        typer.Option(
            "--drop-former",
            help="Remove the former generation too, so that the space is free at once and not after the next "
            "publication. Readers that have it open are not affected.",
        ),
    ] = False,
) -> None:
    """Reclaim the space of removed videos and captions: rewrite shards without their rows, and publish."""
    from indexer.build.progress import TerminalProgress
    from indexer.build.run import check_model, current_manifest, publish_if_changed
    from indexer.store.compact import compact as compact_store
    from indexer.store.compact import drop_former as drop_former_generations
    from indexer.store.writer import StoreWriter

    settings = _recorded(store)
    encoder, _ = _load(settings, encoding)
    check_model(settings, encoder, store)
    progress = TerminalProgress()
    with StoreWriter.open(store) as writer:
        with progress.phase("compact", 0, "row") as bar:
            done = compact_store(writer, bar.advance)
        if current_manifest(store) is not None:
            manifest = publish_if_changed(writer, encoder, progress)
            if drop_former:
                drop_former_generations(writer)
            print_compaction(writer, done)
            if manifest is not None:
                print_manifest(manifest)
                print_notice(store)
        else:
            print_compaction(writer, done)


def transcribe(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH]...", help="Folders, video files or globs in quotes: NAME.LANG.vtt beside each."),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Instead of files: all videos of this store, and the transcripts into it.")
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="tiny, base, small, medium, large-v3, turbo, the name of a faster-whisper model on the hub, or a "
            "folder with one."
        ),
    ] = "small",
    language: Annotated[
        str | None, typer.Option(help="What is spoken, such as en; otherwise recognised in each video.")
    ] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the model runs.")] = "auto",
    *,
    vad: Annotated[
        bool, typer.Option(help="Pass over passages without a voice, in which Whisper tends to invent words.")
    ] = True,
) -> None:
    """Write down what is said in videos without a transcript (extra `speech`).

    Run it again after an interruption: videos that have a transcript are passed over. Beside videos, `emcl index build`
    reads the transcripts; in a store, they are searched at once.
    """
    from indexer.build.progress import TerminalProgress
    from indexer.build.transcribe import Recogniser, transcribe_files, transcribe_store
    from indexer.sources.discover import discover

    if bool(paths) == (store is not None):
        raise typer.BadParameter("give videos or --store STORE, one of both")
    files = [found.path for found in discover(paths).files] if paths else []
    if store is not None:
        _recorded(store)
    recogniser = Recogniser(model, device=device, language=language, vad=vad)
    with _interruptible():
        if store is not None:
            report = transcribe_store(store, recogniser, TerminalProgress())
        else:
            report = transcribe_files(files, recogniser, TerminalProgress())
    for name, reason in report.failed:
        typer.echo(f"failed: {printable(name)}: {printable(reason)}", err=True)
    failed = f", {len(report.failed)} failed" if report.failed else ""
    typer.echo(
        f"{report.written} transcripts written, {report.silent} videos without speech, {report.known} had one{failed}"
    )
    if report.failed:
        raise typer.Exit(INCOMPLETE)


def _run(
    store: Path, settings: StoreSettings, encoder: Encoder, request: BuildRequest, progress_file: Path | None
) -> None:
    from indexer.build.progress import FileProgress, TerminalProgress
    from indexer.build.run import build as build_store
    from indexer.store.writer import StoreWriter

    terminal = TerminalProgress()
    progress = terminal if progress_file is None else FileProgress(progress_file, terminal)
    with _interruptible(), StoreWriter.open(store, settings=settings) as writer:
        report = build_store(writer, encoder, request, progress)
    print_report(report)
    print_correction(store)
    if not report.complete:
        raise typer.Exit(INCOMPLETE)
    if report.found == 0 and request.paths and not request.captions and not report.indexed and not report.removed:
        from indexer.errors import SourceError
        from model.video import formats

        endings = " ".join(sorted(formats.SUFFIXES))
        raise SourceError(f"no videos in {', '.join(request.paths)}; looked for files that end in {endings}")


@contextmanager
def _interruptible() -> Iterator[None]:
    """The first Ctrl-C stops a run cleanly; the second ends the process, even while a thread hangs on a dead mount."""
    import signal
    import threading

    def end(*_: object) -> None:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))  # killing a run loses nothing that is committed
        raise KeyboardInterrupt

    in_charge = threading.current_thread() is threading.main_thread()
    former = signal.signal(signal.SIGINT, end) if in_charge else None
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted: committed work is kept; run the same command again to continue and publish", err=True)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        if in_charge:
            signal.signal(signal.SIGINT, former)


def _print_default_model() -> None:
    """Report the preset of a new store, its size and licence, before anything is downloaded."""
    from indexer.options import new_store_preset
    from model.clip.presets import PRESETS

    name = new_store_preset()
    typer.echo(PRESETS[name].line(name), err=True)


def _load(
    recorded: StoreSettings | None, options: EncoderOptions, paths: Sequence[str] = ()
) -> tuple[Encoder, ModelSpec]:
    """The requested encoder, else the store's. Commands without --runtime use PyTorch in single precision.

    ``paths``: what is to be indexed with it.
    """
    from indexer.options import choose_model
    from indexer.sources.discover import count_videos
    from model.encoder import load_encoder
    from model.export.fastest import NamedModel, at_first_use

    if recorded is None and options.model is None and options.pretrained is None:
        _print_default_model()
    spec = choose_model(recorded, options.model, options.pretrained)
    how = options.model_dump(exclude_unset=True, exclude={"model", "pretrained"})
    encoder = load_encoder(spec.model, pretrained=spec.pretrained, **how)
    if options.runtime == "auto" and "runtime" in how:
        sampling = recorded.sampling if recorded is not None else encoder.config.sampling
        encoder = at_first_use(
            NamedModel(model=spec.model, pretrained=spec.pretrained, exports=options.exports),
            encoder,
            wish=options.runtime,
            precision=options.precision,
            say=lambda line: typer.echo(line, err=True),
            frames_ahead=lambda: count_videos(paths) * sampling.max_frames,
        )
    if "runtime" in how:
        typer.echo(f"encoding with {encoder.runtime.label}: {encoder.runtime.reason}", err=True)
    return encoder, spec


def _recorded(store: Path) -> StoreSettings:
    from indexer.errors import NotAStore
    from indexer.options import recorded_settings

    recorded = recorded_settings(store)
    if recorded is None:
        raise NotAStore(f"{store} holds no store; make one with `emcl index build PATH --store {store}`")
    return recorded


def _new(wishes: Wishes, encoder: Encoder, spec: ModelSpec) -> StoreSettings:
    from indexer.options import new_settings

    return new_settings(wishes, spec=spec, fingerprint=encoder.fingerprint, dim=encoder.dim, config=encoder.config)


store_app = typer.Typer(help="Back up a store while it is served, and restore backups.", no_args_is_help=True)


@store_app.command()
def backup(
    store: Annotated[Path, typer.Option(help="Folder of the store; it may be served and written meanwhile.")],
    to: Annotated[Path, typer.Option("--to", help="New folder for the backup.")],
) -> None:
    """Copy a consistent state of a store. Videos outside of the store are not copied."""
    from indexer.build.progress import TerminalProgress
    from indexer.store.backup import back_up, size_of

    with TerminalProgress().phase("backup", size_of(store), "B") as bar:
        listing = back_up(store, to, bar.advance)
    size = sum(file.size_bytes for file in listing.files.values())
    typer.echo(f"{to}: {listing.videos} videos, {listing.captions} captions, {len(listing.files)} files, {size} bytes")


@store_app.command()
def restore(
    backup: Annotated[Path, typer.Option("--from", help="Folder of a backup.")],
    store: Annotated[Path, typer.Option(help="New folder of the store.")],
) -> None:
    """Restore a backup as a store, checking the checksum of every file."""
    from indexer.build.progress import TerminalProgress
    from indexer.store.backup import restore as restore_store
    from indexer.store.backup import size_of

    with TerminalProgress().phase("restore", size_of(backup), "B") as bar:
        listing = restore_store(backup, store, bar.advance)
    typer.echo(f"{store}: {listing.videos} videos, {listing.captions} captions, as of {listing.created}")


@store_app.command("export-embeddings")
def export_embeddings(
    store: Store,
    output: Annotated[Path, typer.Option(help="Folder for the files; created if needed.")],
    file_format: Annotated[
        Literal["npy", "parquet"],
        typer.Option("--format", help="`npy` with JSON Lines, or `parquet` (extra)."),
    ] = "npy",
    captions: Annotated[bool, typer.Option(help="Export the captions' embeddings too.")] = True,
) -> None:
    """Write the pooled embedding of every segment, with ids, times, titles and tags, and of every caption."""
    from indexer.build.progress import TerminalProgress
    from indexer.store.embedding_files import export_captions, export_segments
    from indexer.store.reader import StoreReader

    progress = TerminalProgress()
    with StoreReader.open(store) as reader:
        with progress.phase("segments", len(reader.segment_ids()), "row") as bar:
            written = [export_segments(reader, output, file_format, bar.advance)]
        if captions:
            with progress.phase("captions", len(reader.caption_ids()), "row") as bar:
                written.append(export_captions(reader, output, file_format, bar.advance))
        typer.echo(f"model {reader.manifest.model_spec.model or 'default'}, {reader.manifest.dim} channels")
    for part in written:
        typer.echo(f"{', '.join(map(str, part.files))}: {part.rows} rows")


@store_app.command("import-embeddings")
@from_models
def import_embeddings(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A .parquet file, a .npy file with its .jsonl, or a folder of clip-retrieval (img_emb/, metadata/).",
        ),
    ],
    store: Annotated[Path, typer.Option(help="Folder of the store; created if needed.")],
    encoding: Annotated[
        EncoderOptions,
        Only(
            "pretrained",
            "device",
            model="The model that made the embeddings: needed for a new store, else the store's.",
        ),
    ],
    captions: Annotated[bool, typer.Option(help="Encode and add the captions that the source names.")] = True,
) -> None:
    """Add videos by embeddings that the same model made elsewhere. Nothing is decoded; each segment has one frame."""
    from indexer.build.encode import encode_captions
    from indexer.build.progress import TerminalProgress
    from indexer.build.run import publish_if_changed
    from indexer.options import recorded_settings
    from indexer.store import embedding_files
    from indexer.store.writer import StoreWriter

    recorded = recorded_settings(store)
    if recorded is None and encoding.model is None:
        raise typer.BadParameter("--model: a new store needs the name of the model that made the embeddings")
    encoder, spec = _load(recorded, encoding)
    progress = TerminalProgress()
    with _interruptible(), StoreWriter.open(store, settings=recorded or _new(Wishes(), encoder, spec)) as writer:
        with progress.phase("read", 0, "row") as bar:
            added = embedding_files.import_embeddings(writer, source, bar.advance)
        if captions and added.captions:
            with progress.phase("captions", len(added.captions), "caption") as bar:
                encode_captions(added.captions, encoder, writer, bar.advance)
        publish_if_changed(writer, encoder, progress)
    for video_id, reason in added.failed.items():
        typer.echo(f"failed: {video_id}: {reason}", err=True)
    known = f", {added.known} were known" if added.known else ""
    typer.echo(f"{added.videos} videos, {added.segments} segments, {len(added.captions)} captions added{known}")
    print_notice(store)
    if added.failed:
        raise typer.Exit(INCOMPLETE)
