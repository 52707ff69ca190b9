"""Embeddings out of a store and into one, as plain NumPy files or Parquet.

Out: one row for each segment, or each caption. ``vector`` is the pooled feature before the EMCL map, as the store keeps
it, not normalised; cosines need unit vectors. In: vectors that the same model made elsewhere, one for each segment.

Columns of segments: ``video_id``, ``path``, ``title``, ``tags``, ``segment``, ``start_seconds``, ``end_seconds`` and
``vector``; of captions: ``caption_id``, ``video_id`` (null for none), ``text`` and ``vector``. As ``npy`` the vectors
are ``NAME.npy`` and everything else ``NAME.jsonl``, line for row.

Legend: N rows, D channels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from indexer.errors import SourceError
from indexer.locations import Location
from indexer.store.reader import StoreReader
from indexer.store.writer import EncodedSegment, EncodedVideo, StoreWriter
from model.durable import sha256_of_file

if TYPE_CHECKING:
    import pyarrow

Format = Literal["npy", "parquet"]
Floats = npt.NDArray[np.float32]
Row = dict[str, Any]

ROWS_AT_ONCE = 4096
VECTOR_COLUMNS = ("vector", "embedding")
PATH_COLUMNS = ("path", "video", "image_path", "url")
CAPTION_COLUMNS = ("captions", "caption")

OnRows = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, and how many rows it has."""

    files: tuple[Path, ...]
    rows: int


def export_segments(
    reader: StoreReader, folder: Path, file_format: Format, on_rows: OnRows = lambda count: None
) -> Exported:
    """Write ``segments.*`` into ``folder``, which is made. Raises ``SourceError`` if it holds such files already."""
    ids = reader.segment_ids()
    return _export(folder, "segments", file_format, len(ids), _segment_rows(reader, ids), reader.manifest.dim, on_rows)


def export_captions(
    reader: StoreReader, folder: Path, file_format: Format, on_rows: OnRows = lambda count: None
) -> Exported:
    """Write ``captions.*`` into ``folder``, as ``export_segments`` does."""
    ids = reader.caption_ids()
    return _export(folder, "captions", file_format, len(ids), _caption_rows(reader, ids), reader.manifest.dim, on_rows)


def _segment_rows(reader: StoreReader, ids: npt.NDArray[np.int64]) -> Iterator[tuple[list[Row], Floats]]:
    for start in range(0, len(ids), ROWS_AT_ONCE):
        block = ids[start : start + ROWS_AT_ONCE]
        rows = []
        for segment in reader.segments(block):
            video = reader.video(segment.video_id)
            assert video is not None, segment
            rows.append(
                {
                    "video_id": segment.video_id,
                    "path": video.path,
                    "title": video.title,
                    "tags": list(video.tags),
                    "segment": segment.number,
                    "start_seconds": segment.start_seconds,
                    "end_seconds": segment.end_seconds,
                }
            )
        yield rows, reader.segment_embeddings(block)


def _caption_rows(reader: StoreReader, ids: npt.NDArray[np.int64]) -> Iterator[tuple[list[Row], Floats]]:
    for start in range(0, len(ids), ROWS_AT_ONCE):
        block = ids[start : start + ROWS_AT_ONCE]
        rows = [
            {"caption_id": caption.caption_id, "video_id": caption.video_id, "text": caption.text}
            for caption in reader.captions(block)
        ]
        yield rows, reader.caption_embeddings(block)


def _export(
    folder: Path,
    name: str,
    file_format: Format,
    count: int,
    blocks: Iterable[tuple[list[Row], Floats]],
    dim: int,
    on_rows: OnRows,
) -> Exported:
    folder.mkdir(parents=True, exist_ok=True)
    suffixes = (".npy", ".jsonl") if file_format == "npy" else (".parquet",)
    files = tuple(folder / f"{name}{suffix}" for suffix in suffixes)
    for file in files:
        if file.exists():
            raise SourceError(f"{file} exists; name another folder, or remove it")
    parts = tuple(file.with_name(f".{file.name}.partial") for file in files)
    try:
        if file_format == "npy":
            _write_npy(parts, count, dim, blocks, on_rows)
        else:
            _write_parquet(parts[0], name, dim, blocks, on_rows)
        for part, file in zip(parts, files, strict=True):
            part.replace(file)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    return Exported(files=files, rows=count)


def _write_npy(
    parts: tuple[Path, ...], count: int, dim: int, blocks: Iterable[tuple[list[Row], Floats]], on_rows: OnRows
) -> None:
    vectors_ND = np.lib.format.open_memmap(parts[0], mode="w+", dtype=np.float32, shape=(count, dim))
    done = 0
    with parts[1].open("w", encoding="utf-8") as lines:
        for rows, block_ND in blocks:
            vectors_ND[done : done + len(rows)] = block_ND
            lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            done += len(rows)
            on_rows(len(rows))
    vectors_ND.flush()


def _write_parquet(
    part: Path, name: str, dim: int, blocks: Iterable[tuple[list[Row], Floats]], on_rows: OnRows
) -> None:
    arrow = _pyarrow()
    import pyarrow.parquet as parquet

    vector = arrow.list_(arrow.float32(), dim)
    columns: dict[str, Any] = (
        {
            "video_id": arrow.string(),
            "path": arrow.string(),
            "title": arrow.string(),
            "tags": arrow.list_(arrow.string()),
            "segment": arrow.int32(),
            "start_seconds": arrow.float64(),
            "end_seconds": arrow.float64(),
        }
        if name == "segments"
        else {"caption_id": arrow.int64(), "video_id": arrow.string(), "text": arrow.string()}
    )
    schema = arrow.schema([*columns.items(), ("vector", vector)])
    with parquet.ParquetWriter(part, schema) as writer:
        for rows, block_ND in blocks:
            values = arrow.array(block_ND.ravel(), arrow.float32())
            arrays = [arrow.array([row[column] for row in rows], kind) for column, kind in columns.items()]
            arrays.append(arrow.FixedSizeListArray.from_arrays(values, dim))
            writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))
            on_rows(len(rows))


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What was added. ``failed`` are videos whose vectors could not be stored, with the reason."""

    videos: int
    segments: int
    captions: list[tuple[str | None, str]]
    known: int
    failed: dict[str, str]


def import_embeddings(writer: StoreWriter, source: Path, on_rows: OnRows = lambda count: None) -> Imported:
    """Add a video for each path, or ``video_id``, that ``source`` names, with one segment for each of its rows.

    ``source`` is a ``.parquet`` file, a ``.npy`` file with its ``.jsonl`` beside it, or a folder of clip-retrieval
    (``img_emb/*.npy`` beside ``metadata/*.parquet``). A file that is there is known by its bytes, as by ``emcl index``;
    anything else by its name. Videos that the store knows are left as they are. Captions are returned, not encoded.
    Raises ``SourceError`` that names the row and the column at fault; nothing was committed then.
    """
    dim = writer.settings.dim
    grouped: dict[str, list[tuple[Row, Floats]]] = {}
    total = 0
    for rows, vectors_ND in _read(source):
        if vectors_ND.ndim != 2 or vectors_ND.shape[1] != dim:
            raise SourceError(
                f"{source}: vectors have shape {vectors_ND.shape}, the store's model makes (rows, {dim}); import what "
                "the same model made, or name its model for another store"
            )
        for row, vector_D in zip(rows, vectors_ND, strict=True):
            if not np.isfinite(vector_D).all() or not np.any(vector_D):
                raise SourceError(f"{source}, row {total}: the vector is zero, or holds NaN or infinity; leave it out")
            grouped.setdefault(_key_of(row, source, total), []).append((row, vector_D))
            total += 1
        on_rows(len(rows))
    if not grouped:
        raise SourceError(f"{source} holds no rows; name a file or folder with embeddings")
    return _add(writer, source, grouped)


def _add(writer: StoreWriter, source: Path, grouped: Mapping[str, list[tuple[Row, Floats]]]) -> Imported:
    states = writer.catalogue.states()
    locations: list[Location] = []
    videos: list[EncodedVideo] = []
    captions: list[tuple[str | None, str]] = []
    titles: dict[str, str] = {}
    tags: dict[str, list[str]] = {}
    known = 0
    for key, members in grouped.items():
        location = _location(key, members[0][0], source)
        if states.get(location.video_id) == "indexed":
            known += 1
            continue
        locations.append(location)
        videos.append(_video(location, members, source))
        rows = [row for row, _ in members]
        captions += [(location.video_id, text) for text in _texts(rows)]
        if title := next((row["title"] for row in rows if isinstance(row.get("title"), str) and row["title"]), None):
            titles[location.video_id] = title
        tags[location.video_id] = list(dict.fromkeys(tag for row in rows for tag in row.get("tags") or ()))
    writer.add_locations(locations)
    failed: dict[str, str] = {}
    for start in range(0, len(videos), ROWS_AT_ONCE):
        failed |= writer.add_videos(videos[start : start + ROWS_AT_ONCE])
    writer.add_titles({video_id: title for video_id, title in titles.items() if video_id not in failed})
    writer.add_tags({video_id: names for video_id, names in tags.items() if video_id not in failed})
    return Imported(
        videos=len(videos) - len(failed),
        segments=sum(len(video.segments) for video in videos if video.video_id not in failed),
        captions=[pair for pair in captions if pair[0] not in failed],
        known=known,
        failed=failed,
    )


def _video(location: Location, members: list[tuple[Row, Floats]], source: Path) -> EncodedVideo:
    segments = []
    for number, (row, vector_D) in enumerate(sorted(members, key=lambda member: _seconds(member[0], source)[0])):
        start, end = _seconds(row, source)
        segments.append(
            EncodedSegment(
                number=number,
                start_seconds=start,
                end_seconds=end,
                timestamps_seconds=np.array([(start + end) / 2]),
                features_FD=vector_D[None],
                pooled_D=vector_D,
            )
        )
    return EncodedVideo(
        video_id=location.video_id,
        name=location.path,
        duration_seconds=segments[-1].end_seconds,
        width=0,
        height=0,
        reason="imported: only embeddings are known of it",
        segments=segments,
    )


def _seconds(row: Row, source: Path) -> tuple[float, float]:
    """Start and end of a row's segment; 0 and 0 for what names none, such as a picture."""
    start, end = row.get("start_seconds") or 0.0, row.get("end_seconds") or 0.0
    if not isinstance(start, int | float) or not isinstance(end, int | float) or not 0 <= start <= end:
        raise SourceError(
            f"{source}: a row has start_seconds {start!r} and end_seconds {end!r}, expected 0 <= start <= end"
        )
    return float(start), float(end)


def _key_of(row: Row, source: Path, number: int) -> str:
    video_id = row.get("video_id")
    if isinstance(video_id, str) and video_id:
        return video_id
    for column in PATH_COLUMNS:
        if isinstance(row.get(column), str) and row[column]:
            return str(row[column])
    raise SourceError(
        f"{source}, row {number}: none of the columns video_id, {', '.join(PATH_COLUMNS)} names what the vector is of"
    )


def _location(key: str, row: Row, source: Path) -> Location:
    path = next((str(row[column]) for column in PATH_COLUMNS if isinstance(row.get(column), str)), None)
    file = None if path is None else Path(path)
    if file is not None and file.is_file():
        status = file.stat()
        return Location(
            path=str(file.absolute()),
            video_id=sha256_of_file(file),
            size_bytes=status.st_size,
            modified_ns=status.st_mtime_ns,
        )
    is_id = len(key) == 64 and set(key) <= set("0123456789abcdef")
    video_id = key if is_id else hashlib.sha256(f"emcl-embedding\0{key}".encode()).hexdigest()
    return Location(path=path or f"{source.absolute()}!{key}", video_id=video_id, size_bytes=0, modified_ns=-1)


def _texts(rows: Iterable[Row]) -> list[str]:
    found: dict[str, None] = {}
    for row in rows:
        for column in CAPTION_COLUMNS:
            value = row.get(column)
            for text in [value] if isinstance(value, str) else value or ():
                if isinstance(text, str) and text.strip():
                    found[text.strip()] = None
    return list(found)


def _read(source: Path) -> Iterator[tuple[list[Row], Floats]]:
    """Blocks of rows with their vectors. Raises ``SourceError``."""
    if (source / "img_emb").is_dir():
        vectors = sorted((source / "img_emb").glob("*.npy"))
        metadata = sorted((source / "metadata").glob("*.parquet"))
        if len(vectors) != len(metadata):
            raise SourceError(
                f"{source}: img_emb has {len(vectors)} .npy files and metadata {len(metadata)} .parquet files; "
                "expected as many of both"
            )
        for vector_file, metadata_file in zip(vectors, metadata, strict=True):
            yield from _paired(_load(vector_file), _parquet_rows(metadata_file), vector_file)
    elif source.suffix == ".parquet" and source.is_file():
        yield from _parquet_vectors(source)
    elif source.suffix == ".npy" and source.is_file():
        beside = source.with_suffix(".jsonl")
        if not beside.is_file():
            raise SourceError(f"{beside} is missing; it names, line for line, what the rows of {source.name} are of")
        with beside.open(encoding="utf-8") as lines:
            yield from _paired(_load(source), _json_rows(lines, beside), source)
    else:
        raise SourceError(
            f"{source} is not a .parquet file, a .npy file with its .jsonl, or a folder with img_emb/ and metadata/"
        )


def _load(path: Path) -> npt.NDArray[Any]:
    try:
        found: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise SourceError(f"{path} cannot be read as .npy ({error})") from error
    return found


def _paired(vectors_ND: npt.NDArray[Any], rows: Iterator[Row], source: Path) -> Iterator[tuple[list[Row], Floats]]:
    taken = iter(rows)
    for start in range(0, len(vectors_ND), ROWS_AT_ONCE):
        block = np.asarray(vectors_ND[start : start + ROWS_AT_ONCE], dtype=np.float32)
        members = list(islice(taken, len(block)))
        if len(members) != len(block):
            raise SourceError(f"{source} has {len(vectors_ND)} rows, what names them {start + len(members)}")
        yield members, block
    if next(taken, None) is not None:
        raise SourceError(f"{source} has {len(vectors_ND)} rows, fewer than what names them")


def _json_rows(lines: Iterable[str], path: Path) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise SourceError(f"{path}:{number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise SourceError(f"{path}:{number}: expected an object, got {type(row).__name__}")
        yield row


def _parquet_rows(path: Path) -> Iterator[Row]:
    for batch in _parquet_batches(path):
        yield from batch.to_pylist()


def _parquet_vectors(path: Path) -> Iterator[tuple[list[Row], Floats]]:
    for batch in _parquet_batches(path):
        column = next((name for name in VECTOR_COLUMNS if name in batch.schema.names), None)
        if column is None:
            raise SourceError(
                f"{path} has the columns {', '.join(batch.schema.names)}, expected one of {', '.join(VECTOR_COLUMNS)}"
            )
        try:
            vectors_ND = np.array(batch.column(column).to_pylist(), dtype=np.float32)
        except (ValueError, TypeError) as error:
            raise SourceError(f"{path}: the lists in {column} are of different lengths or hold no numbers") from error
        yield batch.drop_columns([column]).to_pylist(), vectors_ND


def _parquet_batches(path: Path) -> Iterator[pyarrow.RecordBatch]:
    arrow = _pyarrow()
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=ROWS_AT_ONCE)
    except (arrow.ArrowInvalid, OSError) as error:
        raise SourceError(f"{path} cannot be read as Parquet ({error})") from error


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise SourceError(
            "Parquet needs the package pyarrow, which is not installed; install the extra with "
            "`pip install 'emcl-search[parquet]'`, or use --format npy"
        ) from error
    return pyarrow
