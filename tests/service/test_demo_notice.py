"""The demo model says what it is wherever it serves anything but the clips that it was made for."""

import logging
import shutil
import sys
import time
from contextlib import ExitStack, suppress

import pytest
from service_support import serving

from indexer.store.demo_notice import NOTICE, demo_notice, is_own_clip
from indexer.store.reader import StoreReader
from model.demo.captions import captions_of
from model.demo.corpus import write_clip
from model.demo.scene import make_scene
from model.encoder import load_encoder
from service.cli import main
from service.doctor.checks import Context
from service.doctor.index_checks import check_index
from service.settings import load_settings

WARNING = f"warning: {NOTICE}"


@pytest.fixture(scope="module")
def emcl():
    """Runs a command in this process."""

    def run(*arguments) -> None:
        before, sys.argv = sys.argv, ["emcl", *map(str, arguments)]
        try:
            with suppress(SystemExit):
                main()
        finally:
            sys.argv = before

    return run


@pytest.fixture(scope="module")
def store(tmp_path_factory, validation_folder, emcl):
    """The demo's own clips, indexed with the demo model by the command."""
    path = tmp_path_factory.mktemp("demo") / "store"
    emcl("index", "build", validation_folder, "--store", path, "--model", "demo", "--workers", "1",
         "--captions", validation_folder / "captions.jsonl")  # fmt: skip
    return path


@pytest.fixture
def mixed(store, tmp_path, validation_folder, emcl):
    """A copy of that store to which a video under a name of its own was added."""
    shutil.copytree(store, tmp_path / "store")
    write_clip(make_scene(7, "train", 1), tmp_path / "holiday.mp4")
    emcl("index", "add", tmp_path / "holiday.mp4", "--store", tmp_path / "store")
    return tmp_path / "store"


def test_its_own_corpus_is_served_without_a_warning(store, emcl, capsys, serve):
    emcl("search", "a red star", "--store", store)
    emcl("index", "list", "--store", store)
    assert "demo model" not in capsys.readouterr().err
    assert check_index(Context(settings=load_settings({"store": store}))).state == "ok"
    assert serve(store).get("/v1/index").json()["demo_notice"] is None


def test_other_videos_are_served_with_a_warning_everywhere(mixed, emcl, capsys, serve, caplog, tmp_path):
    emcl("search", "a red star", "--store", mixed)
    assert WARNING in capsys.readouterr().err
    for command in (["rebuild"], ["list"], ["compact", mixed], ["merge", mixed, "--store", tmp_path / "merged"]):
        emcl("index", *command, *(["--store", mixed] if len(command) == 1 else []))
        assert WARNING in capsys.readouterr().err, command
    with StoreReader.open(mixed) as reader:
        own = next(video.video_id for video in reader.list_videos() if video.title != "holiday")
    emcl("index", "remove", own, "--store", mixed)
    assert WARNING in capsys.readouterr().err
    found = check_index(Context(settings=load_settings({"store": mixed})))
    assert found.state == "warning"
    assert NOTICE in found.detail
    with caplog.at_level(logging.WARNING):
        assert serve(mixed).get("/v1/index").json()["demo_notice"] == NOTICE
    assert NOTICE in caplog.messages


def test_a_video_that_is_added_while_it_serves_brings_the_warning(store, tmp_path, serve, caplog, clips):
    shutil.copytree(store, tmp_path / "store")
    client = serve(tmp_path / "store")
    assert client.get("/v1/index").json()["demo_notice"] is None
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        job = client.post("/v1/videos", files={"file": ("mine.mp4", clips[0], "video/mp4")}).json()["job_url"]
        while client.get(job).json()["state"] not in ("succeeded", "failed"):
            time.sleep(0.05)
    assert client.get("/v1/index").json()["demo_notice"] == NOTICE
    assert NOTICE in caplog.messages


def test_another_model_is_never_called_the_demo(clip_store):
    with StoreReader.open(clip_store / "store") as reader:
        assert demo_notice(reader) is None


def test_a_clip_is_known_by_its_name_and_a_caption_of_its_own_scene():
    own = captions_of(make_scene(3, "test", 12), 3, 12)
    assert is_own_clip("test-3-000012", ["something else", own[1]])
    assert not is_own_clip("test-3-000013", own)
    assert not is_own_clip("test-3-000012", [])
    assert not is_own_clip("holiday", own)


@pytest.fixture
def serve(tmp_path):
    """A client of a service over a store of the demo model."""
    encoder = load_encoder("demo", device="cpu")
    with ExitStack() as stack:
        yield lambda store: stack.enter_context(serving(store.parent, encoder, tmp_path))
