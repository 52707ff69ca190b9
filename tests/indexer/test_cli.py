"""``emcl index`` as people type it, with a small real model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from index_support import make_clip
from typer.testing import CliRunner

from indexer.cli import INCOMPLETE, app
from indexer.errors import ModelMismatch, NotAStore, SettingsConflict, SourceError, StoreError
from indexer.store.reader import StoreReader


def emcl(*arguments: object) -> Result:
    """Run a command; an error that ``emcl`` would print is raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def checkpoint(tiny_encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from model.checkpoint import save_checkpoint

    chosen = {"calibration": {"emcl": tiny_encoder.config.emcl.model_dump(mode="json")}}  # else EMCL would be off
    return save_checkpoint(tiny_encoder.net, tmp_path_factory.mktemp("model") / "tiny.safetensors", metadata=chosen)


@pytest.fixture(scope="module")
def other_checkpoint(tiny_config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from model.checkpoint import save_checkpoint
    from model.net import build_net

    with torch.random.fork_rng():
        torch.manual_seed(5)
        return save_checkpoint(build_net(tiny_config), tmp_path_factory.mktemp("other") / "other.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(3):
        make_clip(folder / f"{number}.mp4", number, seconds=0.5, size=64)
    return folder


@pytest.fixture
def built(folder: Path, checkpoint: Path, tmp_path: Path) -> Path:
    captions = tmp_path / "captions.jsonl"
    captions.write_text("".join(json.dumps({"video": f"{n}.mp4", "captions": [f"clip {n}"]}) + "\n" for n in range(3)))
    store = tmp_path / "store"
    result = emcl(
        *("build", folder, "--store", store, "--model", checkpoint, "--captions", captions),
        *("--workers", 1, "--segment-seconds", 5, "--max-frames", 4),
    )
    assert result.exit_code == 0
    assert "3 files found, 3 videos indexed, 3 captions added" in result.stdout
    assert "3 videos, 3 segments, 3 captions" in result.stdout
    return store


def test_the_store_records_what_it_was_built_with(built: Path, checkpoint: Path, tiny_encoder) -> None:
    with StoreReader.open(built, fingerprint=tiny_encoder.fingerprint) as reader:
        manifest = reader.manifest
        assert manifest.model_spec.model == str(checkpoint)
        assert manifest.segment_seconds == 5
        assert manifest.sampling.max_frames == 4
        assert manifest.sampling.sample_fps == tiny_encoder.config.sampling.sample_fps


def test_stage_one_uses_the_frozen_map(built: Path, tiny_encoder) -> None:
    with StoreReader.open(built) as reader:
        rows = tiny_encoder.map_rows(reader.frozen_map, reader.segment_embeddings(reader.segment_ids()))
        texts = tiny_encoder.map_rows(reader.frozen_map, tiny_encoder.encode_texts(["clip 0", "something"]))
        scores, ids = reader.search_videos(texts, 3)
        expected = np.take_along_axis(texts @ rows.T, np.searchsorted(reader.segment_ids(), ids), axis=1)
        np.testing.assert_allclose(scores, expected, atol=1e-6)
        raw = np.concatenate(
            [reader.segment_embeddings(reader.segment_ids()), reader.caption_embeddings(reader.caption_ids())]
        )
        fitted = tiny_encoder.fit_frozen_map(raw)
        for name, array in fitted.to_arrays().items():
            np.testing.assert_array_equal(array, reader.frozen_map.to_arrays()[name])


def test_features_match_the_encoder_on_its_own(built: Path, tiny_encoder) -> None:
    from model.video.sampling import decode

    with StoreReader.open(built) as reader:
        for video in reader.list_videos():
            batch = decode(video.path, sampling=reader.manifest.sampling)
            frames = tiny_encoder.preprocess(batch.frames)[None]
            mask = np.ones(frames.shape[:2], dtype=bool)
            expected = tiny_encoder.encode_videos(frames, mask)
            features, _ = reader.segment_features(np.array([video.segments[0].segment_id]))
            np.testing.assert_allclose(features, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def test_adding_uses_the_settings_of_the_store(built: Path, tmp_path: Path) -> None:
    more = make_clip(tmp_path / "more.mp4", 8, seconds=0.5)
    (tmp_path / "more.txt").write_text("one more\n")
    result = emcl("add", more, "--store", built, "--workers", 1)
    assert result.exit_code == 0
    assert "4 videos, 4 segments, 4 captions" in result.stdout
    captions = tmp_path / "late.csv"
    captions.write_text("video,captions\nmore,later\n")
    assert "5 captions" in emcl("add", "--store", built, "--captions", captions).stdout
    assert emcl("add", "--store", built).exit_code == 2


def test_removing_by_path_and_by_id(built: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StoreReader.open(built) as reader:
        video = next(v for v in reader.list_videos() if v.path == str(folder / "2.mp4"))
    monkeypatch.chdir(folder)
    result = emcl("remove", "1.mp4", video.video_id[:10], "--store", built)
    assert "1 videos, 1 segments, 1 captions" in result.stdout
    with StoreReader.open(built) as reader:
        assert [v.path for v in reader.list_videos()] == [str(folder / "0.mp4")]
    assert (folder / "1.mp4").exists(), "files are not touched"
    with pytest.raises(SourceError, match="names no video"):
        emcl("remove", "1.mp4", "--store", built)


def test_failures_are_listed_and_the_exit_code_says_so(built: Path, folder: Path) -> None:
    (folder / "broken.mp4").write_text("no video")
    result = emcl("build", folder, "--store", built, "--workers", 1)
    assert result.exit_code == INCOMPLETE
    assert f"failed: {folder / 'broken.mp4'}: " in result.stderr
    assert "3 videos, 3 segments" in result.stdout
    listed = json.loads(emcl("list", "--store", built, "--json").stdout)
    assert {Path(video["paths"][0]).name: video["state"] for video in listed} == {
        "0.mp4": "indexed",
        "1.mp4": "indexed",
        "2.mp4": "indexed",
        "broken.mp4": "failed",
    }
    table = emcl("list", "--store", built).stdout
    assert "failed" in table
    assert "1 segments, 1 captions" in table


def test_other_files_are_counted_and_a_folder_without_videos_is_an_error(
    built: Path, tmp_path: Path, checkpoint: Path, folder: Path
) -> None:
    for name in ("x.xyz", "y.xyz", "notes"):
        (folder / name).write_bytes(b"x")
    assert (
        "passed over, because their names are not those of videos: 2 .xyz, 1 without a suffix"
        in emcl("add", folder, "--store", built).stderr
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "1.xyz").write_bytes(b"x")
    with pytest.raises(SourceError, match=r"no videos in .*empty; looked for files that end in .*\.mp4"):
        emcl("build", tmp_path / "empty", "--store", tmp_path / "s", "--model", checkpoint)


def test_verify_says_what_it_checked_and_fails_on_damage(built: Path) -> None:
    result = emcl("verify", "--store", built)
    assert result.exit_code == 0
    assert "3 segments and 3 captions checked" in result.stdout
    assert "recall@10 of videos 1.000" in result.stdout
    assert json.loads(emcl("verify", "--store", built, "--json").stdout)["problems"] == []
    path = built / "features" / "000000.npy"
    content = bytearray(path.read_bytes())
    content[130] ^= 1
    path.write_bytes(bytes(content))
    result = emcl("verify", "--store", built)
    assert result.exit_code == 1
    assert "damaged: segment 1: its features" in result.stdout


def test_rebuilding_changes_the_index_without_the_videos(built: Path, folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    result = emcl("rebuild", "--store", built, "--index", "HNSW8", "--index-options", "efSearch=50")
    assert result.exit_code == 0
    assert "(HNSW8): 3 videos" in result.stdout
    with StoreReader.open(built) as reader:
        assert (reader.manifest.factory, reader.manifest.options) == ("HNSW8", "efSearch=50")
    with pytest.raises(StoreError, match="trains on at least"):
        emcl("rebuild", "--store", built, "--index", "IVF50,Flat")
    assert "(HNSW8)" in emcl("rebuild", "--store", built).stdout


def test_other_settings_and_models_are_refused(built: Path, folder: Path, other_checkpoint: Path) -> None:
    with pytest.raises(SettingsConflict, match=r"segment_seconds is 5.0, asked for 9.0"):
        emcl("build", folder, "--store", built, "--segment-seconds", 9)
    with pytest.raises(SettingsConflict, match="max_frames is 4, asked for 7"):
        emcl("build", folder, "--store", built, "--max-frames", 7)
    with pytest.raises(ModelMismatch):
        emcl("build", folder, "--store", built, "--model", other_checkpoint)
    with pytest.raises(ModelMismatch):
        emcl("rebuild", "--store", built, "--model", other_checkpoint)
    assert emcl("build", folder, "--store", built, "--segment-seconds", 5).exit_code == 0


def test_slips_are_told_before_a_model_is_loaded_or_a_store_made(tmp_path: Path, folder: Path) -> None:
    store = tmp_path / "store"
    with pytest.raises(SourceError, match="there is no file or folder"):
        emcl("build", tmp_path / "nowhere", "--store", store, "--model", "no-such-model")
    for option, value in (("--captions", tmp_path / "none.csv"), ("--sample-fps", 0), ("--max-frames", 0)):
        assert emcl("build", folder, "--store", store, "--model", "no-such-model", option, value).exit_code == 2
    assert not store.exists()


def test_options_that_the_index_does_not_take_change_nothing(built: Path) -> None:
    with pytest.raises(StoreError, match="does not take the search options"):
        emcl("rebuild", "--store", built, "--index-options", "nprobe=3")
    assert json.loads(emcl("verify", "--store", built, "--json").stdout)["notes"] == []


def test_an_index_of_no_known_kind_is_refused_before_anything_is_encoded(
    tmp_path: Path, folder: Path, checkpoint: Path
) -> None:
    store = tmp_path / "store"
    with pytest.raises(StoreError, match=r"cannot make an index 'Foo' for \d+ channels \(could not parse"):
        emcl("build", folder, "--store", store, "--model", checkpoint, "--index", "Foo")
    assert not store.exists()


def test_more_frames_than_the_model_has_positions_are_refused(tmp_path: Path, folder: Path, checkpoint: Path) -> None:
    store = tmp_path / "store"
    with pytest.raises(StoreError, match=r"do not fit the model: .*sampling.max_frames is 500, but"):
        emcl("build", folder, "--store", store, "--model", checkpoint, "--max-frames", 500)
    assert not store.exists()


@pytest.mark.parametrize("command", ["add x", "remove x", "list", "verify", "rebuild"])
def test_commands_need_a_store(tmp_path: Path, command: str) -> None:
    with pytest.raises(NotAStore, match="emcl index build"):
        emcl(*command.split(), "--store", tmp_path / "nowhere")
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - the folder, not its paths


def test_every_real_recording_is_indexed(real_clips: Path, checkpoint: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    result = emcl(
        *("build", real_clips, "--store", store, "--captions", real_clips / "captions.jsonl"),
        *("--model", checkpoint, "--workers", 1),
    )
    assert result.exit_code == 0, result.stderr
    with StoreReader.open(store) as reader:
        videos = reader.list_videos()
        assert len(videos) == 15
        assert all(len(video.captions) == 2 and video.reason is None for video in videos)
        bottles = next(video for video in videos if video.path == str(real_clips / "bottles_on_table.mp4"))
        assert [(s.start_seconds, round(s.end_seconds)) for s in bottles.segments] == [(0, 30), (30, 40)]
    assert emcl("verify", "--store", store).exit_code == 0


def test_an_empty_store_is_served_and_filled_later(tmp_path: Path, folder: Path, checkpoint: Path) -> None:
    store = tmp_path / "empty"
    assert "0 videos, 0 segments, 0 captions" in emcl("create", "--store", store, "--model", checkpoint).stdout
    with StoreReader.open(store) as reader:
        scores, ids = reader.search_videos(np.ones((1, reader.manifest.dim), np.float32), 5)
        assert (ids == -1).all()
        assert np.isneginf(scores).all()
        assert reader.frozen_map.strength == 0
    with pytest.raises(StoreError, match="holds a store already"):
        emcl("create", "--store", store, "--model", checkpoint)
    emcl("add", folder, "--store", store, "--workers", 1)
    with StoreReader.open(store) as reader:
        assert reader.manifest.counts.videos == 3
        assert reader.manifest.frozen_map_rows == 3
        assert reader.frozen_map.strength > 0


def test_an_empty_store_keeps_its_settings(tmp_path: Path, folder: Path, checkpoint: Path) -> None:
    store = tmp_path / "empty"
    emcl("create", "--store", store, "--model", checkpoint, "--segment-seconds", 5)
    with pytest.raises(SettingsConflict, match="segment_seconds"):
        emcl("build", folder, "--store", store, "--segment-seconds", 7)
