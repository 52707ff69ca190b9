"""``emcl index``: build, add, remove, list, verify, rebuild.

Exit codes: 0 all done; 1 an error that is printed; 2 wrong usage; 3 done, but some files or captions could not be used
(they are listed); 130 interrupted, what was done is kept. Heavy modules are imported inside the commands.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from indexer.bank_cli import app as bank_app
from indexer.cli_output import print_manifest, print_report, print_verification, print_videos
from indexer.create_cli import app as create_app
from indexer.encoder_options import Device, Exports, Model, Precision, Pretrained, Runtime
from indexer.index_options import Factory, IndexMemory, IndexRecall, SearchOptions
from indexer.merge_cli import app as merge_app
from indexer.source_options import AllowProtocol, KeepMedia, PartitionOption, RetryFailed

if TYPE_CHECKING:
    from indexer.build.run import BuildRequest
    from indexer.options import Wishes
    from indexer.store.config import ModelSpec, StoreSettings
    from model.encoder import Encoder

app = typer.Typer(
    help="Index videos and captions into a store that can be searched. Exit code 3: done, but some files or captions "
    "could not be used; they are listed.",
    no_args_is_help=True,
)
app.add_typer(bank_app)
app.add_typer(create_app)
app.add_typer(merge_app)

INCOMPLETE, INTERRUPTED = 3, 130

Paths = Annotated[
    list[str],
    typer.Argument(metavar="PATH...", help="Folders, video files, tar shards, globs in quotes, or URLs."),
]
MorePaths = Annotated[list[str] | None, typer.Argument(metavar="PATH...", help="As for build.")]
Store = Annotated[Path, typer.Option(help="Folder of the store.")]
Captions = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="JSONL or CSV with `video`, `captions`, optional `tags`. NAME.txt beside a video works too.",
    ),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Decoding processes. Default: one per core, at most 8.")]
Timeout = Annotated[float, typer.Option(min=1, help="Seconds that decoding one segment may take.")]
SegmentSeconds = Annotated[
    float | None, typer.Option(min=0.1, help="Longer videos are cut into segments of this length. Default: 30.")
]
SampleFps = Annotated[
    float | None, typer.Option(min=0.01, max=240, help="Frames taken per second. Default: the model's.")
]
MaxFrames = Annotated[int | None, typer.Option(min=1, max=512, help="Most frames of a segment. Default: the model's.")]
Sampling = Annotated[
    Literal["uniform", "keyframes"] | None,
    typer.Option(help="keyframes takes the nearest key frames: many times faster, other frames."),
]
ProgressFile = Annotated[
    Path | None, typer.Option("--progress-file", help="Append progress to this file, as JSON lines, for programs.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def build(
    paths: Paths,
    store: Store,
    captions: Captions = None,
    model: Model = None,
    pretrained: Pretrained = None,
    device: Device = "auto",
    runtime: Runtime = "auto",
    precision: Precision = "auto",
    exports: Exports = None,
    workers: Workers = None,
    timeout: Timeout = 300.0,
    segment_seconds: SegmentSeconds = None,
    sample_fps: SampleFps = None,
    max_frames: MaxFrames = None,
    sampling: Sampling = None,
    index: Factory = None,
    index_options: SearchOptions = None,
    index_memory: IndexMemory = None,
    index_recall: IndexRecall = None,
    prune: Annotated[bool, typer.Option(help="Remove videos whose files are gone or were replaced.")] = False,
    partition: PartitionOption = None,
    allow_protocol: AllowProtocol = None,
    keep_media: KeepMedia = False,
    retry_failed: RetryFailed = False,
    progress_file: ProgressFile = None,
) -> None:
    """Index videos into a store, made if need be. Run it again after an interruption, or when files changed."""
    from indexer.build.archives import PackedOptions
    from indexer.build.run import BuildRequest
    from indexer.options import Wishes, bytes_of, check_wishes, recorded_settings
    from indexer.sources.discover import check_paths
    from indexer.sources.partition import WHOLE, Partition

    protocols = frozenset(allow_protocol or ())
    part = WHOLE if partition is None else Partition.parse(partition)
    check_paths(paths, protocols)  # a slip of the pen is told before weights are fetched and a store is made
    wishes = Wishes(
        segment_seconds=segment_seconds,
        sample_fps=sample_fps,
        max_frames=max_frames,
        strategy=sampling,
        factory=index,
        options=index_options,
        index_memory=bytes_of(index_memory),
        index_recall=index_recall,
    )
    recorded = recorded_settings(store)
    if recorded is not None:
        check_wishes(recorded, wishes, store)
    encoder, spec = _load(recorded, model, pretrained, device, precision, runtime, exports)
    request = BuildRequest(
        paths=paths,
        captions=captions,
        prune=prune,
        workers=workers or _cores(),
        timeout_seconds=timeout,
        partition=part,
        protocols=protocols,
        packed=PackedOptions(keep_media=keep_media, retry_failed=retry_failed),
    )
    _run(store, recorded or _new(wishes, encoder, spec), encoder, request, progress_file)


@app.command()
def add(
    store: Store,
    paths: MorePaths = None,
    captions: Captions = None,
    device: Device = "auto",
    runtime: Runtime = "auto",
    precision: Precision = "auto",
    exports: Exports = None,
    workers: Workers = None,
    timeout: Timeout = 300.0,
    allow_protocol: AllowProtocol = None,
    keep_media: KeepMedia = False,
    retry_failed: RetryFailed = False,
    progress_file: ProgressFile = None,
) -> None:
    """Add videos or captions to a store, with the model and settings that it was built with."""
    from indexer.build.archives import PackedOptions
    from indexer.build.run import BuildRequest
    from indexer.sources.discover import check_paths

    if not paths and captions is None:
        raise typer.BadParameter("give videos to add, or --captions FILE")
    recorded = _recorded(store)
    protocols = frozenset(allow_protocol or ())
    check_paths(paths or [], protocols)
    encoder, _ = _load(recorded, None, None, device, precision, runtime, exports)
    request = BuildRequest(
        paths=paths or [],
        captions=captions,
        workers=workers or _cores(),
        timeout_seconds=timeout,
        protocols=protocols,
        packed=PackedOptions(keep_media=keep_media, retry_failed=retry_failed),
    )
    _run(store, recorded, encoder, request, progress_file)


@app.command()
def remove(
    videos: Annotated[list[str], typer.Argument(metavar="VIDEO_ID|PATH...", help="Ids, or files that were indexed.")],
    store: Store,
    device: Device = "auto",
) -> None:
    """Remove videos with their captions, whatever other paths lead to them. Files are not touched."""
    from indexer.build.progress import TerminalProgress
    from indexer.build.run import check_model, publish
    from indexer.store.writer import StoreWriter

    encoder, _ = _load(_recorded(store), None, None, device)
    with StoreWriter.open(store) as writer:
        check_model(writer.settings, encoder, store)
        writer.remove_videos(writer.catalogue.find_videos(videos))
        manifest = publish(writer, encoder, TerminalProgress())
    print_manifest(manifest)


@app.command("list")
def list_videos(store: Store, as_json: Json = False) -> None:
    """List every video with its state; also those that could not be read, with the reason."""
    from indexer.store.catalogue_reader import CatalogueReader
    from indexer.store.generation import CATALOGUE

    with closing(CatalogueReader.open_readonly(store / CATALOGUE)) as catalogue:
        videos = catalogue.summaries()
    print_videos(videos, as_json=as_json)


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
def rebuild(
    store: Store,
    index: Factory = None,
    index_options: SearchOptions = None,
    index_memory: IndexMemory = None,
    index_recall: IndexRecall = None,
    model: Annotated[
        str | None, typer.Option(help="The same weights under another name, such as a calibrated checkpoint.")
    ] = None,
    pretrained: Pretrained = None,
    device: Device = "auto",
) -> None:
    """Publish a new generation from what is stored, without decoding: other FAISS index, newly fitted EMCL map."""
    from indexer.build.progress import TerminalProgress
    from indexer.build.run import check_model, publish
    from indexer.options import Wishes, bytes_of, with_index
    from indexer.store.writer import StoreWriter

    recorded = _recorded(store)
    encoder, spec = _load(recorded, model, pretrained, device)
    wishes = Wishes(
        factory=index, options=index_options, index_memory=bytes_of(index_memory), index_recall=index_recall
    )
    with StoreWriter.open(store) as writer:
        check_model(writer.settings, encoder, store)
        settings = with_index(writer.settings, wishes).model_copy(update={"model_spec": spec})
        manifest = publish(writer, encoder, TerminalProgress(), settings)
    print_manifest(manifest)


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
    if not report.complete:
        raise typer.Exit(INCOMPLETE)


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted: what was done is kept; run the same command again to continue and publish", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _load(
    recorded: StoreSettings | None,
    model: str | None,
    pretrained: str | None,
    device: str,
    precision: Precision = "fp32",
    runtime: Runtime | None = None,
    exports: Path | None = None,
) -> tuple[Encoder, ModelSpec]:
    from indexer.options import choose_model
    from model.encoder import load_encoder

    spec = choose_model(recorded, model, pretrained)
    encoder = load_encoder(
        spec.model, pretrained=spec.pretrained, device=device, precision=precision, runtime=runtime, exports=exports
    )
    if runtime is not None:
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


def _cores() -> int:
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
