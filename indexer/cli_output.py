"""What the commands of ``emcl index`` print."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from indexer.build.run import BuildReport
    from indexer.store.compact import Compaction
    from indexer.store.config import IndexReport, Manifest
    from indexer.store.verify import Verification
    from indexer.store.writer import StoreWriter

SHOWN_NOTES = 20


def print_report(report: BuildReport) -> None:
    """What an indexing run did: results on stdout, what could not be used and other notes on stderr."""
    for note in report.notes[:SHOWN_NOTES]:
        typer.echo(f"note: {note}", err=True)
    if len(report.notes) > SHOWN_NOTES:
        typer.echo(f"note: … and {len(report.notes) - SHOWN_NOTES} more", err=True)
    for path, reason in report.failed:
        typer.echo(f"failed: {path}: {reason}", err=True)
    for row in report.unmatched:
        typer.echo(f"unused: {row}", err=True)
    removed = f", {report.removed} removed" if report.removed else ""
    failed = f", {len(report.failed)} failed" if report.failed else ""
    typer.echo(
        f"{report.found} files found, {report.indexed} videos indexed, "
        f"{report.captions} captions added{removed}{failed}"
    )
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
    """What ``emcl index compact`` gained, and what of it is free only later."""
    from indexer.store.compact import waiting_bytes

    gained = done.before_bytes - done.after_bytes
    typer.echo(f"{done.shards} shards written anew: {gained} of {done.before_bytes} bytes gained")
    if waiting := waiting_bytes(writer):
        typer.echo(
            f"{waiting} bytes of former shards are free when the generation that still names them goes: with the next "
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


def index_lines(indexes: Mapping[str, IndexReport]) -> list[str]:
    """What each index is, what it takes and what it finds; nothing of indexes that hold nothing."""
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
        typer.echo(line.rstrip())
    typer.echo(f"{len(videos)} videos", err=True)
