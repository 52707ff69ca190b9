"""Publishing an immutable generation from the shards and the catalogue, and reading its files.

A generation is a folder with ``manifest.json``, ``snapshot.db`` (a copy of the catalogue), ``segments.npy`` and
``captions.npy`` (where each id's features are), ``videos.faiss``, ``captions.faiss``, ``emcl_map.npz`` (the correction:
map and bases), ``confidence.npz`` (what unrelated texts reach, if the model was at hand) and, if there are hub bases,
``segment_hubs.npy`` (each segment's number in the rerank). It is built under a temporary name, brought to the disk,
renamed, and only then named in ``CURRENT``. Nothing is decoded for it.

Legend: N rows, D channels.
"""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from indexer.ann.choose import AUTO
from indexer.errors import Damaged, NotAStore, StoreError
from indexer.store import confidence
from indexer.store.bank import CORRECTION, banks_of, read_settings
from indexer.store.build_index import write_index
from indexer.store.catalogue import CatalogueReader
from indexer.store.config import FROZEN_MAP_ROWS, KEPT_GENERATIONS, FileCheck, IndexReport, Manifest, StoreSettings
from indexer.store.shards import CAPTIONS, FRAMES, POOLED, SHARD_KINDS, ShardKind, ShardReader
from indexer.store.snapshot import Snapshot
from indexer.store.vectors import BLOCK_ROWS, MappedSide, Side
from indexer.store.vectors import RowMapper as RowMapper
from model.durable import TEMPORARY_PREFIX, sha256_of_file, sync_file, sync_folder, write_atomically

if TYPE_CHECKING:
    from model.emcl.correction import Correction
    from model.emcl.em import FrozenMap

Places = npt.NDArray[np.void]

CURRENT, GENERATIONS, FEATURES, CATALOGUE = "CURRENT", "generations", "features", "catalogue.db"
MANIFEST, SNAPSHOT, FROZEN_MAP = "manifest.json", "snapshot.db", "emcl_map.npz"
ENGINE_STATE = "engine.json"
"""While it is there, an external engine holds rows under the current map, and publications keep it."""
VIDEO_INDEX, CAPTION_INDEX = "videos.faiss", "captions.faiss"
SEGMENT_PLACES_FILE, CAPTION_PLACES_FILE, SEGMENT_HUBS = "segments.npy", "captions.npy", "segment_hubs.npy"
FILES = (SNAPSHOT, FROZEN_MAP, VIDEO_INDEX, CAPTION_INDEX, SEGMENT_PLACES_FILE, CAPTION_PLACES_FILE)

PHASES = ("snapshot", "EMCL map", "video index", "caption index")
"""Progress that ``publish`` reports."""


def publish(
    store: Path,
    catalogue: CatalogueReader,
    settings: StoreSettings,
    mapper: RowMapper,
    progress: Callable[[str], None] = lambda _: None,
    *,
    empty_map: FrozenMap | None = None,
) -> Manifest:
    """Build a generation from everything the catalogue holds and make it current.

    ``progress`` receives the name of each phase. A store without content keeps the map that it has, or takes
    ``empty_map`` if it was never published; without one that is a ``StoreError``. Raises ``IndexFactoryError`` if the
    index cannot be built; the current generation then stays.
    """
    generations = store / GENERATIONS
    generations.mkdir(exist_ok=True)
    work = generations / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    work.mkdir()
    try:
        manifest = _build(store, work, catalogue, settings, mapper, progress, empty_map)
        for name in (*manifest.files, MANIFEST):
            sync_file(work / name)
        sync_folder(work)
        work.rename(generations / manifest.generation)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    sync_folder(generations)
    write_atomically(store / CURRENT, f"{manifest.generation}\n".encode())
    return manifest


def current_name(store: Path) -> str:
    """What ``CURRENT`` says. Raises ``NotAStore`` if nothing was published."""
    if not (store / CATALOGUE).exists() and not (store / CURRENT).exists():
        raise NotAStore(f"{store} holds no store; make one with `emcl index build PATH --store {store}`")
    if not (store / CURRENT).exists():
        raise NotAStore(f"nothing was published in {store} yet; run `emcl index build PATH --store {store}` to its end")
    return (store / CURRENT).read_text(encoding="utf-8", errors="replace").strip()


def read_current(store: Path) -> Manifest:
    """The manifest of the current generation. Raises ``NotAStore``, ``Damaged`` or ``NewerFormat``."""
    return read_manifest(store / GENERATIONS / current_name(store))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the generation in ``folder``. Raises ``Damaged`` or ``NewerFormat``."""
    path = folder / MANIFEST
    if not path.is_file():
        raise Damaged(f"generation {folder.name!r} is not in {folder.parent}; publish a new one: `emcl index rebuild`")
    return Manifest.from_json(path.read_text(encoding="utf-8", errors="replace"), where=str(path))


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare size and SHA-256 of every file of a generation with the manifest. Raises ``Damaged``."""
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise Damaged(f"{path} is missing; run `emcl index rebuild`")
        if (size := path.stat().st_size) != expected.size_bytes:
            raise Damaged(f"{path} has {size} bytes, expected {expected.size_bytes}; run `emcl index rebuild`")
        if (found := sha256_of_file(path)) != expected.sha256:
            raise Damaged(
                f"{path} has SHA-256 {found[:12]}…, expected {expected.sha256[:12]}…: it was changed after it was "
                "published; run `emcl index rebuild`"
            )


def open_shards(store: Path, manifest: Manifest) -> dict[str, ShardReader]:
    """A reader for each kind of shard, limited to the rows that the generation knows. Raises ``Damaged``."""
    return {
        kind.name: ShardReader(store / FEATURES, kind, manifest.dim, shards_of_kind(manifest, kind))
        for kind in SHARD_KINDS
    }


def shards_of_kind(manifest: Manifest, kind: ShardKind) -> dict[int, int]:
    """Shard numbers of one kind with the rows that the generation knows."""
    wanted = {}
    for name, rows in manifest.shards.items():
        prefix, _, number = name.removesuffix(".npy").rpartition("-")
        if prefix == kind.prefix.removesuffix("-"):
            wanted[int(number)] = rows
    return wanted


def kept(store: Path) -> list[Path]:
    """Folders of the current generation and of its predecessors that stay for their readers, oldest first."""
    current = current_name(store)
    names = sorted(path.name for path in (store / GENERATIONS).glob("[0-9]*-*"))
    older = [name for name in names if name <= current] if current in names else names
    return [store / GENERATIONS / name for name in older[-KEPT_GENERATIONS:]]


def clean_up(store: Path) -> None:
    """Remove what a killed run left unfinished, and generations that are no longer kept."""
    generations = store / GENERATIONS
    if not generations.is_dir():
        return
    stay = kept(store) if (store / CURRENT).exists() else []
    for folder in generations.iterdir():
        if folder not in stay:
            shutil.rmtree(folder)


def _build(
    store: Path,
    work: Path,
    catalogue: CatalogueReader,
    settings: StoreSettings,
    mapper: RowMapper,
    progress: Callable[[str], None],
    empty_map: FrozenMap | None,
) -> Manifest:
    progress(PHASES[0])
    catalogue.copy_to(work / SNAPSHOT)
    snapshot = Snapshot(work / SNAPSHOT)
    try:
        counts, revision = snapshot.counts(), snapshot.revision
        segments, captions = snapshot.segment_places(), snapshot.caption_places()
    finally:
        snapshot.close()
    np.save(work / SEGMENT_PLACES_FILE, segments)
    np.save(work / CAPTION_PLACES_FILE, captions)
    shards = _used_shards(catalogue, segments, captions)
    videos_side = _side(store, settings.dim, POOLED, shards, segments, "pooled_")
    captions_side = _side(store, settings.dim, CAPTIONS, shards, captions, "")
    progress(PHASES[1])
    if (store / ENGINE_STATE).exists():
        current = read_current(store)
        correction, fitted_rows = load_correction(store / GENERATIONS / current.generation), current.frozen_map_rows
    else:
        frozen, fitted_rows = _fit(store, mapper, videos_side, captions_side, empty_map)
        correction = fit_correction(store, settings.fingerprint, frozen, mapper, videos_side, captions_side)
    np.savez(work / FROZEN_MAP, **correction.to_arrays())  # type: ignore[arg-type]
    frames = ShardReader(store / FEATURES, FRAMES, settings.dim, shards[FRAMES.name])
    names = [*FILES, *_write_segment_hubs(work / SEGMENT_HUBS, correction, segments, frames)]
    names += _write_confidence(store, work, mapper, correction, videos_side)
    indexes = _write_indexes(work, videos_side, captions_side, correction, settings, progress)
    files = {name: check_of(work / name) for name in names}
    manifest = Manifest(
        generation=_next_name(store, files),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        fingerprint=settings.fingerprint,
        model_spec=settings.model_spec,
        dim=settings.dim,
        sampling=settings.sampling,
        segment_seconds=settings.segment_seconds,
        factory=indexes["videos"].factory if settings.factory == AUTO else settings.factory,
        options=indexes["videos"].options if settings.factory == AUTO else settings.options,
        indexes=indexes,
        revision=revision,
        counts=counts,
        frozen_map_rows=fitted_rows,
        shards={kind.file_name(n): rows for kind in SHARD_KINDS for n, rows in shards[kind.name].items()},
        files=files,
    )
    (work / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _used_shards(catalogue: CatalogueReader, segments: Places, captions: Places) -> dict[str, dict[int, int]]:
    used = {FRAMES.name: segments["shard"], POOLED.name: segments["pooled_shard"], CAPTIONS.name: captions["shard"]}
    committed = {kind.name: catalogue.shard_rows(kind.name) for kind in SHARD_KINDS}
    return {name: {int(n): committed[name][int(n)] for n in np.unique(numbers)} for name, numbers in used.items()}


def _side(
    store: Path, dim: int, kind: ShardKind, shards: dict[str, dict[int, int]], places: Places, prefix: str
) -> Side:
    reader = ShardReader(store / FEATURES, kind, dim, shards[kind.name])
    return Side(places["id"], places[f"{prefix}shard"], places[f"{prefix}row"], reader)


def _fit(
    store: Path, mapper: RowMapper, videos: Side, captions: Side, empty_map: FrozenMap | None
) -> tuple[FrozenMap, int]:
    """Fit the frozen map on a sample of both sides; an emptied store keeps the map that it has."""
    half = FROZEN_MAP_ROWS // 2
    take_videos = min(len(videos), max(half, FROZEN_MAP_ROWS - len(captions)))
    take_captions = min(len(captions), FROZEN_MAP_ROWS - take_videos)
    rows = np.concatenate([videos.raw(videos.sample(take_videos)), captions.raw(captions.sample(take_captions))])
    if len(rows):
        return mapper.fit_frozen_map(rows), len(rows)
    if not (store / CURRENT).exists():
        if empty_map is None:
            raise StoreError(
                f"{store} holds no readable video and no caption, so there is nothing to publish; "
                "`emcl index create` makes an empty store"
            )
        return empty_map, 0
    return load_correction(store / GENERATIONS / current_name(store)).frozen, 0


def load_correction(folder: Path) -> Correction:
    """What a generation applies to rows and scores; a generation of an earlier version has a frozen map alone."""
    from model.emcl.correction import Correction

    with np.load(folder / FROZEN_MAP, allow_pickle=False) as arrays:
        return Correction.from_arrays(dict(arrays))


def digest_of(correction: Correction) -> str:
    """SHA-256 of a correction's arrays: rows that were mapped under another one cannot be compared."""
    digest = hashlib.sha256()
    for name, array in sorted(correction.to_arrays().items()):
        whole = np.ascontiguousarray(array)
        digest.update(f"{name} {whole.dtype.str} {whole.shape};".encode())
        digest.update(whole.tobytes())
    return digest.hexdigest()


def fit_correction(
    store: Path, fingerprint: str, frozen: FrozenMap, mapper: RowMapper, videos: Side, captions: Side
) -> Correction:
    """The correction of a store: as calibrated, with hub bases of the banks that there are."""
    from model.emcl.correction import Correction, CorrectionSettings
    from model.emcl.em import FrozenMap

    settings = read_settings(store) or mapper.calibrated or CorrectionSettings()
    if settings.fingerprint not in ("", fingerprint):
        raise StoreError(
            f"what was calibrated for {store} is of checkpoint {settings.fingerprint[:12]}, the store of "
            f"{fingerprint[:12]}; calibrate again, or delete {CORRECTION} in it"
        )
    banks = banks_of(store, videos, captions)
    own = FrozenMap.from_arrays(frozen.to_arrays())
    return Correction.fit(own, settings, banks=banks, pooling=mapper.pooling)


def _write_segment_hubs(path: Path, correction: Correction, segments: Places, frames: ShardReader) -> list[str]:
    """Write each segment's number in the rerank; the names of the files that were written."""
    if "videos" not in correction.hubs:
        return []
    numbers_N = np.empty(len(segments), np.float32)
    for start in range(0, len(segments), BLOCK_ROWS // 8):
        part = slice(start, start + BLOCK_ROWS // 8)
        numbers_N[part] = segment_numbers(correction, segments[part], frames)
        frames.let_go()
    np.save(path, numbers_N)
    return [path.name]


def _write_confidence(store: Path, work: Path, mapper: RowMapper, correction: Correction, videos: Side) -> list[str]:
    """Write what unrelated texts reach over the segments; the names of the files that were written."""
    rows_nD = confidence.background_rows(store, mapper)
    if rows_nD is None:
        return []
    queries_nM = correction.base_rows(rows_nD, "text")
    found = confidence.fit(queries_nM, confidence.base_blocks(correction, videos))
    confidence.write(work / confidence.CONFIDENCE, found)
    return [confidence.CONFIDENCE]


def segment_numbers(correction: Correction, places: Places, frames: ShardReader) -> npt.NDArray[np.float32]:
    """The numbers in the rerank of the segments at ``places``."""
    counts = places["frames"].astype(np.int64)
    longest = int(counts.max(initial=0))
    features = frames.gather_blocks(places["shard"], places["row"], counts, longest).view(np.float16)
    return correction.numbers_of_segments(
        features.reshape(len(places), longest, frames.dim), np.arange(longest) < counts[:, None]
    )


def _write_indexes(
    work: Path,
    videos: Side,
    captions: Side,
    correction: Correction,
    settings: StoreSettings,
    progress: Callable[[str], None],
) -> dict[str, IndexReport]:
    """Both indexes; each may take its share of the memory, by its number of vectors."""
    sides = {
        "videos": MappedSide(videos, correction, "videos"),
        "captions": MappedSide(captions, correction, "captions"),
    }
    everything = max(1, len(videos) + len(captions))
    reports = {}
    for name, other, file, phase in (
        ("videos", "captions", VIDEO_INDEX, PHASES[2]),
        ("captions", "videos", CAPTION_INDEX, PHASES[3]),
    ):
        progress(phase)
        reports[name] = write_index(
            work / file,
            sides[name],
            sides[other],
            settings,
            names=(name, other),
            memory_bytes=settings.index_memory * len(sides[name]) // everything,
        )
    return reports


def check_of(path: Path) -> FileCheck:
    """Size and checksum of a file."""
    return FileCheck(size_bytes=path.stat().st_size, sha256=sha256_of_file(path))


def _next_name(store: Path, files: dict[str, FileCheck]) -> str:
    """A number one above the highest there, and a hash of the content, so that no two generations share a name."""
    names = [path.name for path in (store / GENERATIONS).iterdir() if not path.name.startswith(TEMPORARY_PREFIX)]
    number = max((int(name.partition("-")[0]) for name in names), default=0) + 1
    content = "".join(check.sha256 for check in files.values())
    return f"{number:06d}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
