"""A store that is reached by another path than the one it was written under: nothing in it is lost."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from library_support import add, ended, make_app, send

from indexer.locations import Location
from indexer.store import generation
from indexer.store.catalogue import CatalogueReader
from indexer.store.writer import StoreWriter
from service.library.upload_store import Accepted, UploadStore


def moved(folder: Path, how: str) -> Path:
    """The folder of the same store by another path; a copy's original stays where it was."""
    target = folder.parent / f"{folder.name}-{how}"
    if how == "symlink":
        target.symlink_to(folder, target_is_directory=True)
    elif how == "copy":
        shutil.copytree(folder, target)
    else:
        folder.rename(target)
    return target


def written_absolute(folder: Path) -> None:
    """Name own files as stores did whose catalogue had format 3."""
    media = folder.absolute() / "store" / "media"
    with closing(sqlite3.connect(folder / "store" / generation.CATALOGUE, isolation_level=None)) as database:
        database.execute("UPDATE locations SET path = ? || substr(path, 6) WHERE path LIKE 'media/%'", (str(media),))
        assert database.execute("SELECT changes()").fetchone()[0] == 1


@pytest.fixture
def folder(clip_store: Path, tmp_path: Path) -> Path:
    shutil.copytree(clip_store / "store", tmp_path / "at" / "store")
    return tmp_path / "at"


@pytest.mark.parametrize("names", ["relative", "absolute"])
@pytest.mark.parametrize("how", ["symlink", "copy", "rename"])
def test_an_upload_outlives_a_move_of_its_store(folder, tiny_encoder, clips, how, names):
    with TestClient(make_app(folder, tiny_encoder)) as client:
        video_id = add(client, clips[0])
    if names == "absolute":
        written_absolute(folder)
    there = moved(folder, how)
    if how == "copy":
        (folder / "store" / "media" / f"{video_id}.mp4").write_bytes(b"changed in the original")
    with TestClient(make_app(there, tiny_encoder)) as client:
        other = add(client, clips[1])  # after the cleaning of the start
        assert client.get(f"/v1/videos/{video_id}/stream").content == clips[0]
        kept = {path.name for path in (there / "store" / "media").iterdir()}
        assert kept == {f"{video_id}.mp4", f"{other}.mp4"}
        assert client.delete(f"/v1/videos/{video_id}").status_code == 204
        assert not (there / "store" / "media" / f"{video_id}.mp4").exists()
    assert how != "copy" or (folder / "store" / "media" / f"{video_id}.mp4").exists()


def test_an_upload_that_waits_outlives_a_move_of_its_store(folder, tiny_encoder, clips):
    with TestClient(make_app(folder, tiny_encoder)) as client, StoreWriter.open(folder / "store"):
        answer = send(client, clips[0], title="waits")
    there = moved(folder, "rename")
    with TestClient(make_app(there, tiny_encoder)) as client:
        assert ended(client, answer)["state"] == "succeeded"
        video = client.get(answer.json()["video_url"]).json()
        assert video["title"] == "waits"
        assert client.get(video["stream_url"]).content == clips[0]


def test_catalogue_names_own_files_relative_to_the_store(folder, tiny_encoder, clips):
    with TestClient(make_app(folder, tiny_encoder)) as client:
        video_id = add(client, clips[0])
    with closing(sqlite3.connect(folder / "store" / generation.CATALOGUE)) as database:
        names = {row[0] for row in database.execute("SELECT path FROM locations WHERE video_id = ?", (video_id,))}
    assert names == {f"media/{video_id}.mp4"}
    with closing(CatalogueReader.open_readonly(folder / "store" / generation.CATALOGUE)) as catalogue:
        assert catalogue.paths(video_id) == [str(folder / "store" / "media" / f"{video_id}.mp4")]


def store_with(folder: Path, content: bytes, *, pending: bool = False, named: bool = False) -> tuple[UploadStore, Path]:
    """An owned upload store with one file, which a pending record or the catalogue may name."""
    uploads = UploadStore(folder / "store")
    uploads.own()
    video_id = hashlib.sha256(content).hexdigest()
    path = uploads.folder / f"{video_id}.mp4"
    path.write_bytes(content)
    if pending:
        record = Accepted(
            video_id=video_id,
            path=str(path),
            size_bytes=len(content),
            job_id="j",
            title=None,
            tags=(),
            captions=(),
        )
        upload = uploads.folder / ".tmp-upload"
        upload.write_bytes(content)
        uploads.accept(type("R", (), {"path": upload})(), record)
    if named:
        with StoreWriter.open(folder / "store") as writer:
            place = Location(path=str(path), video_id=video_id, size_bytes=len(content), modified_ns=1)
            writer.add_locations([place])
    return uploads, path


@pytest.mark.parametrize("by", ["pending", "named"])
def test_named_bytes_are_never_removed(folder, by):
    uploads, path = store_with(folder, b"a video", **{by: True})
    uploads.remove(path.stem)
    uploads.clean()
    assert path.read_bytes() == b"a video"
    uploads.close()


def test_bytes_of_a_removal_that_was_cut_short_come_back_if_they_are_named(folder):
    uploads, path = store_with(folder, b"a video", named=True)
    aside = path.with_name(f".removing-{path.name}")
    path.rename(aside)  # and the service was killed right then
    uploads.clean()
    assert (path.read_bytes(), aside.exists()) == (b"a video", False)
    uploads.close()


def test_unnamed_bytes_are_removed(folder):
    uploads, _ = store_with(folder, b"a video")
    partial = uploads.folder / ".tmp-0123"
    partial.write_bytes(b"cut")
    aside = uploads.folder / f".removing-{'0' * 64}.mp4"
    aside.write_bytes(b"cut")
    users = uploads.folder / "holiday.mp4"
    users.write_bytes(b"put here by someone")
    uploads.clean()
    assert {path.name for path in uploads.folder.iterdir()} == {users.name}
    uploads.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_catalogue_removes_nothing(folder):
    uploads, path = store_with(folder, b"a video")
    catalogue = folder / "store" / generation.CATALOGUE
    catalogue.chmod(0)
    uploads.clean()
    assert path.exists()
    catalogue.chmod(0o644)
    uploads.close()


def test_a_damaged_catalogue_removes_nothing(folder):
    uploads, path = store_with(folder, b"a video")
    (folder / "store" / generation.CATALOGUE).write_bytes(b"no database at all" * 100)
    uploads.clean()
    assert path.exists()
    uploads.close()
