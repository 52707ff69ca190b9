"""What jobs make is served: another index with its model while queries go on, and a training from start to search."""

import shutil
import signal
import threading
from pathlib import Path

import httpx
import pytest
from jobs_support import submit, until
from service_support import assert_problem, serving
from training_support import training_job

from service.jobs.store import JobStore


@pytest.fixture(scope="module")
def other_index(tmp_path_factory, tiny_config, clip_store):
    """Three of the clips, indexed with a model of other weights and another image size."""
    import torch

    from indexer.cli import build
    from model.checkpoint import save_checkpoint
    from model.net import build_net

    made = tmp_path_factory.mktemp("other")
    custom = tiny_config.clip.custom
    clip = {"custom": {**custom, "vision_cfg": {**custom["vision_cfg"], "image_size": 48}}}
    config = type(tiny_config)(**{**tiny_config.model_dump(), "clip": clip})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        checkpoint = save_checkpoint(build_net(config), made / "other.safetensors")
    clips = [str(clip_store / "clips" / f"clip_{n}.mp4") for n in range(3)]
    build(clips, made / "store", model=str(checkpoint), device="cpu", workers=1)
    return made


def index_job(job_store, store):
    """A job that made this index."""
    job_id = job_store.create("index", {"store": "new", "model": "served", "paths": []}, resumable=True).job_id
    shutil.copytree(store, job_store.job_folder(job_id) / "store")
    job_store.start(job_id, pid=1, host="here")
    job_store.succeed(job_id, {"complete": True})
    return job_id


def test_another_index_is_served_with_its_model_while_queries_go_on(
    clip_store, tiny_encoder, tiny_checkpoint, tmp_path, other_index
):
    options = {"model": str(tiny_checkpoint), "jobs_inputs": str(clip_store)}
    with serving(clip_store, tiny_encoder, tmp_path, **options) as client:
        job_store = client.app.state.services.jobs.job_store
        job_id = index_job(job_store, other_index / "store")
        before = client.get("/v1/index").json()
        answers, stop = [], threading.Event()

        def search():
            while not stop.is_set():
                answers.append(client.post("/v1/search", json={"text": f"a red circle {len(answers) % 50}"}))

        searching = [threading.Thread(target=search) for _ in range(2)]
        for thread in searching:
            thread.start()
        try:
            after = client.post("/v1/index/reload", json={"index": job_id})
            assert after.status_code == 200, after.text
            until(lambda: answers[-1].json()["source"]["fingerprint"] == after.json()["fingerprint"])
        finally:
            stop.set()
            for thread in searching:
                thread.join()
        assert after.json()["counts"]["videos"] == 3
        assert after.json()["fingerprint"] != before["fingerprint"]
        assert {answer.status_code for answer in answers} == {200}
        videos = {before["fingerprint"]: 6, after.json()["fingerprint"]: 3}
        for answer in answers:
            assert len(answer.json()["hits"]) == videos[answer.json()["source"]["fingerprint"]]
        path = clip_store / "clips" / "clip_1.mp4"
        upload = client.post("/v1/search/video", files={"file": ("a.mp4", path.read_bytes())})
        assert upload.json()["hits"][0]["title"] == "clip_1"
        assert client.get("/health/ready").status_code == 200
        assert "emcl_" in client.get("/metrics").text

        assert_problem(client.delete(f"/v1/jobs/{job_id}"), 409, mentions="served")
        added = submit(client, kind="index", paths=["clips"])
        assert added["parameters"]["store"] == job_id  # "served" means what is served now, also later
        assert client.post("/v1/index/reload").json()["counts"]["videos"] == 3
        back = client.post("/v1/index/reload", json={"index": "configured"})
        assert back.json()["counts"]["videos"] == 6
        client.post(f"/v1/jobs/{added['job_id']}/cancel")
        client.delete(f"/v1/jobs/{added['job_id']}")
        assert client.delete(f"/v1/jobs/{job_id}").status_code == 204


def test_an_index_that_cannot_be_served_changes_nothing(clip_store, tiny_encoder, tmp_path, other_index):
    with serving(clip_store, tiny_encoder, tmp_path) as client:
        job_store = client.app.state.services.jobs.job_store
        damaged, without_model = (index_job(job_store, other_index / "store") for _ in range(2))
        for file in (job_store.job_folder(damaged) / "store").rglob("videos.faiss"):
            file.write_bytes(b"damaged")
        assert_problem(client.post("/v1/index/reload", json={"index": damaged}), 409, mentions=damaged)
        moved = other_index / "other.safetensors"
        moved.rename(other_index / "hidden")
        try:
            assert_problem(client.post("/v1/index/reload", json={"index": without_model}), 409)
        finally:
            (other_index / "hidden").rename(moved)
        assert client.post("/v1/search", json={"text": "a red circle"}).json()["hits"]
        assert client.get("/v1/index").json()["counts"]["videos"] == 6


def book_is_at_rest(folder):
    """Whether no process works on any job: the embedded worker has ended with the service."""
    job_store = JobStore(folder)
    counts = job_store.counts()
    job_store.close()
    return counts["running"] == counts["lost"] == 0


@pytest.mark.slow
def test_a_training_over_http_is_indexed_and_served(start_server, clip_store, tiny_checkpoint, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(clip_store / "store", store)
    server = start_server(
        *("--store", store, "--model", tiny_checkpoint, "--jobs-folder", tmp_path / "jobs", "--device", "cpu"),
        *("--jobs-inputs", clip_store / "clips", "--job-nice", 0, "--keys-file", tmp_path / "keys.json"),
    )
    with httpx.Client(base_url=server.url, timeout=60) as client:

        def done(**body):
            job_id = submit(client, **body)["job_id"]
            url = f"/v1/jobs/{job_id}"
            job = until(
                lambda: (now := client.get(url).json())["state"] not in ("queued", "running") and now, seconds=150
            )
            assert job["state"] == "succeeded", client.get(url + "/log").text
            return job

        trained = done(**training_job(steps=8, validate_every=4))
        assert trained["progress"]["done"] == 8
        assert "R@1" in trained["result"]["validation"]["text_to_video"]
        curve = client.get(f"/v1/jobs/{trained['job_id']}/metrics").json()["metrics"]
        assert [line["step"] for line in curve if "loss" in line] == list(range(1, 9))
        indexed = done(kind="index", paths=["."], store="new", model=trained["job_id"], device="cpu", workers=1)
        assert indexed["result"]["counts"]["videos"] == 6
        assert indexed["result"]["fingerprint"] == trained["result"]["fingerprint"]
        served = client.post("/v1/index/reload", json={"index": indexed["job_id"]}).json()
        assert served["fingerprint"] == trained["result"]["fingerprint"]
        answer = client.post("/v1/search", json={"text": "a red circle", "k": 6}).json()
        assert answer["source"]["fingerprint"] == trained["result"]["fingerprint"]
        assert len(answer["hits"]) == 6
        assert "emcl train" in Path(tmp_path / "jobs" / trained["job_id"] / "log.txt").read_text()
    assert server.stop() in (0, -signal.SIGTERM)
    assert book_is_at_rest(tmp_path / "jobs")
