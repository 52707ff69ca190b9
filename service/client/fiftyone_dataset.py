"""What searches find as a dataset of FiftyOne, and a dataset of FiftyOne as captions or tags for the indexer.

    python -m service.client.fiftyone_dataset export FOLDER --query "a dog" --query "a red car"
    python -m service.client.fiftyone_dataset import FOLDER captions.jsonl --labels-as tags

Format: FiftyOne's ``FiftyOneTemporalDetectionDataset``, a folder with ``labels.json`` (temporal detections of each
sample, times in seconds) and ``data.json`` (the path of each sample's video; FiftyOne itself also writes videos into
``data/``). It is read by ``fiftyone.Dataset.from_dir(FOLDER, fiftyone.types.FiftyOneTemporalDetectionDataset)`` where
the service and FiftyOne see the same files. Written and read here as JSON: FiftyOne itself is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from model.durable import write_atomically
from service.client.client import Client

LABELS, VIDEOS, MEDIA = "labels.json", "data.json", "data"

app = typer.Typer(help="Datasets of FiftyOne: written from searches, read as captions or tags.", no_args_is_help=True)


class DatasetError(ValueError):
    """A dataset cannot be written or read; the message says why and what to do."""


def export_dataset(client: Client, folder: Path, queries: Sequence[str], *, k: int = 25, **search: Any) -> int:
    """Write the best ``k`` videos of each query as samples, their moments as detections; returns how many samples.

    A detection has the query as its label, the moment's start and end in seconds, and the score as its confidence.
    ``search`` is passed to ``Client.search``. Raises ``DatasetError`` if ``folder`` is not empty, or if this key may
    not see where files are, and ``service.client.ClientError``.
    """
    if not queries:
        raise DatasetError("no query given; pass one or more: they become the classes of the dataset")
    if folder.exists() and any(folder.iterdir()):
        raise DatasetError(f"{folder} is not empty; name a new folder")
    paths: dict[str, str] = {}
    labels: dict[str, list[dict[str, Any]]] = {}
    for query in queries:
        for hit in client.search(query, k=k, **search).hits:
            if hit.path is None:
                raise DatasetError(
                    "this key may not see where files are, which a dataset names; use a key of scope admin"
                )
            paths[hit.video_id] = hit.path
            spans = [(one.start, one.end, one.score) for one in hit.moments] or [(hit.start, hit.end, hit.score)]
            labels.setdefault(hit.video_id, []).extend(
                {"label": query, "timestamps": [start, end], "confidence": score} for start, end, score in spans
            )
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / VIDEOS, paths)
    _write(folder / LABELS, {"classes": list(dict.fromkeys(queries)), "labels": labels})
    return len(paths)


def read_dataset(folder: Path, *, labels_as: Literal["captions", "tags"]) -> list[dict[str, Any]]:
    """Return rows of ``{video, captions, tags}`` for `emcl index build --captions`, one for each sample.

    The labels of a sample, each once, become its captions or its tags. Detections may name their class by number, as
    FiftyOne writes them where a dataset has classes. Raises ``DatasetError``.
    """
    said = _object(folder / LABELS)
    labels, classes = said.get("labels"), said.get("classes") or []
    if not isinstance(labels, dict) or not isinstance(classes, list):
        raise DatasetError(
            f"{folder / LABELS} has no `labels` of samples; export it from FiftyOne as FiftyOneTemporalDetectionDataset"
        )
    videos = _videos(folder)
    rows = []
    for sample, detections in labels.items():
        if sample not in videos:
            raise DatasetError(f"sample {sample!r} has labels and no video in {folder}; add it to {VIDEOS} or {MEDIA}/")
        names = [_label(one, classes, f"{folder / LABELS}, sample {sample!r}") for one in detections or []]
        row = {"video": videos[sample], "captions": [], labels_as: list(dict.fromkeys(names))}
        rows.append(row)
    return rows


def _videos(folder: Path) -> Mapping[str, str]:
    """The path of each sample's video, by the sample's name: that of its file without the ending."""
    if (folder / VIDEOS).exists():
        return {str(name): str(folder / str(path)) for name, path in _object(folder / VIDEOS).items()}
    media = folder / MEDIA
    files = (path for path in sorted(media.rglob("*")) if path.is_file())
    return {str(path.relative_to(media).with_suffix("")): str(path) for path in files}


def _label(detection: Any, classes: Sequence[Any], where: str) -> str:
    label = detection.get("label") if isinstance(detection, dict) else None
    if isinstance(label, int) and not isinstance(label, bool):
        if not 0 <= label < len(classes):
            raise DatasetError(f"{where}: label {label} is not among the {len(classes)} classes; export it again")
        label = classes[label]
    if not isinstance(label, str) or not label.strip():
        raise DatasetError(f"{where}: a detection has no label; remove it, or export the dataset again")
    return label


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read as JSON ({error}); name the folder of the dataset") from error
    if not isinstance(found, dict):
        raise DatasetError(f"{path} holds no JSON object; name the folder of the dataset")
    return found


def _write(path: Path, content: object) -> None:
    write_atomically(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


@app.command("export")
def export_command(
    folder: Annotated[Path, typer.Argument(help="New folder for the dataset.")],
    query: Annotated[list[str], typer.Option(help="What to look for; may be repeated.")],
    url: Annotated[str, typer.Option(help="Address of the service.")] = "http://127.0.0.1:8000",
    api_key: Annotated[str | None, typer.Option(envvar="EMCL_API_KEY", help="Key of scope admin.")] = None,
    k: Annotated[int, typer.Option(min=1, help="Most videos of each query.")] = 25,
    min_confidence: Annotated[float, typer.Option(help="Leave out hits that fit less well: 0 to 1.")] = 0.0,
) -> None:
    """Write what searches find as a FiftyOneTemporalDetectionDataset."""
    with Client(url, api_key=api_key) as client:
        count = export_dataset(client, folder, query, k=k, min_confidence=min_confidence or None)
    typer.echo(f"{count} videos: {folder}")


@app.command("import")
def import_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a FiftyOneTemporalDetectionDataset.")],
    output: Annotated[Path, typer.Argument(help="Caption file to write, for `emcl index build --captions`.")],
    labels_as: Annotated[Literal["captions", "tags"], typer.Option(help="What labels become.")] = "tags",
) -> None:
    """Turn a dataset's labels into captions or tags of its videos."""
    rows = read_dataset(folder, labels_as=labels_as)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(output, "".join(lines).encode())
    typer.echo(f"{len(rows)} videos: {output}")


def main() -> int:
    """Run a command; an error is one line."""
    from service.client.transport import ClientError

    try:
        app()
    except (DatasetError, ClientError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
