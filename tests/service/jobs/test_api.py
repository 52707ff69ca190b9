"""The HTTP interface of jobs: what is refused at once, what is accepted, kept, listed and reported, and to whom."""

import json
import threading

import pytest
from jobs_support import submit
from service_support import PROBLEM, assert_problem, bearer, make_keys, serving
from training_support import TINY, training_job

from service.jobs.commands import TrainingProgress
from service.jobs.record import JobProgress

NO_JOB = "0" * 16


TRAIN = training_job()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Allowed and forbidden places: ``inside`` may be read, ``outside`` not, whatever leads there."""
    made = tmp_path_factory.mktemp("jobs_api")
    for place in ("inside", "outside"):
        (made / place / "deep").mkdir(parents=True)
        (made / place / "captions.jsonl").write_text('{"video": "a.mp4", "captions": ["a"]}\n')
        (made / place / "train.yaml").write_text(json.dumps(TINY))
    (made / "inside" / "link").symlink_to(made / "outside")
    (made / "inside" / "loop").symlink_to(made / "inside" / "loop")
    return made


@pytest.fixture(scope="module")
def client(clip_store, tiny_encoder, folder):
    with serving(clip_store, tiny_encoder, folder, jobs_inputs=str(folder / "inside"), max_jobs=1000) as made:
        yield made


@pytest.fixture
def job_store(client):
    return client.app.state.services.jobs.job_store


@pytest.mark.parametrize(
    ("body", "status", "mentions"),
    [
        ({}, 422, "kind"),
        ({"kind": "shell", "command": "ls"}, 422, "kind"),
        ({"kind": "train"}, 422, "config"),
        ({**TRAIN, "config_file": "train.yaml"}, 422, "either"),
        ({**TRAIN, "output": "/tmp/x"}, 422, "output"),
        ({**TRAIN, "device": "cuda:0; rm"}, 422, "device"),
        ({**TRAIN, "timeout_seconds": 1e9}, 422, "job-timeout-seconds"),
        ({**TRAIN, "timeout_seconds": 0}, 422, "timeout_seconds"),
        ({**TRAIN, "start_from": "served"}, 422, "start_from"),
        ({**TRAIN, "start_from": NO_JOB}, 404, NO_JOB),
        (training_job(steps=0), 422, "steps"),
        (training_job(learning_rat=1), 422, "learning_rat"),
        (training_job(start_from="/etc/passwd"), 422, "config.start_from"),
        (training_job(data={"kind": "manifest", "train": "/etc/passwd"}), 422, "config.data.train"),
        (training_job(model={"clip": {"architecture": "hf-hub:someone/model"}}), 422, "fetched"),
        (training_job(model={"clip": {"custom": {"text_cfg": {"hf_model_name": "someone/model"}}}}), 422, "fetched"),
        (training_job(model={"clip": {"pretrained": "/etc/passwd"}}), 422, "pretrained"),
        ({"kind": "index"}, 422, "paths"),
        ({"kind": "index", "paths": ["."], "model": "demo"}, 422, "new"),
        ({"kind": "index", "captions": "captions.jsonl", "store": "new"}, 422, "paths"),
        ({"kind": "index", "paths": ["."], "store": "../x"}, 422, "store"),
        ({"kind": "index", "paths": ["."], "store": NO_JOB}, 404, NO_JOB),
        ({"kind": "index", "paths": ["."], "store": "new", "model": NO_JOB}, 404, NO_JOB),
        ({"kind": "evaluate", "data": "captions.jsonl", "model": "/etc/model.safetensors"}, 422, "model"),
        ({"kind": "evaluate", "data": "captions.jsonl", "candidates": 0}, 422, "candidates"),
        ({"kind": "calibrate", "data": "captions.jsonl", "mode": "best"}, 422, "mode"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(client, job_store, body, status, mentions):
    before = job_store.count()
    assert_problem(client.post("/v1/jobs", json=body), status, mentions=mentions)
    assert job_store.count() == before


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "/etc/passwd", "..", "../outside", "deep/../../outside", "link", "link/captions.jsonl", "loop",
        "nothing-here", "http://localhost/a.mp4", "file:///etc/passwd", "*.jsonl", "capt[i]ons.jsonl", "a\x00b",
        "OUTSIDE/captions.jsonl", "x" * 5000, "-x", "--store",
    ],
)  # fmt: skip
def test_paths_lead_nowhere_but_into_allowed_folders(client, folder, path):
    path = path.replace("OUTSIDE", str(folder / "outside"))
    for body in (
        {"kind": "index", "paths": [path]},
        {"kind": "index", "captions": path},
        {"kind": "evaluate", "data": path},
        {"kind": "train", "config_file": path},
        training_job(data={"kind": "manifest", "train": path or "/"}),  # as a path, "" means the allowed folder
    ):
        problem = assert_problem(client.post("/v1/jobs", json=body), 422)
        assert "root:" not in json.dumps(problem)


def test_outside_and_not_there_are_told_in_the_same_words(client, folder):
    def said(path):
        detail = client.post("/v1/jobs", json={"kind": "evaluate", "data": path}).json()["detail"]
        return detail.replace(path, "PATH")

    assert said(str(folder / "outside" / "captions.jsonl")) == said(str(folder / "outside" / "nothing"))


@pytest.mark.parametrize(
    "strange",
    [
        '{"x": NaN}',
        '{"x": -Infinity}',
        '{"x": "\\ud800"}',
        '{"\\ud800": 1}',
        "[" * 400 + "]" * 400,
        "[" * 9000 + "]" * 9000,
    ],
)
def test_json_that_cannot_be_kept_is_refused(client, job_store, strange):
    before = job_store.count()
    custom = json.dumps({**TRAIN, "config": {**TINY, "model": {"clip": {"custom": {"x": "STRANGE"}}}}})
    for body in (
        custom.replace('"STRANGE"', strange),
        json.dumps({"kind": "evaluate", "data": 1}).replace("1", strange),
    ):
        response = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
        assert response.status_code in (400, 422), response.text
        assert response.headers["content-type"] == PROBLEM
    assert client.get("/v1/jobs").status_code == 200
    assert job_store.count() == before


def test_allowed_paths_are_accepted_relative_and_absolute(client, folder):
    inside = folder / "inside"
    job = submit(client, kind="index", paths=["deep", str(inside)], captions="captions.jsonl")
    assert job["parameters"]["paths"] == [str(inside / "deep"), str(inside)]
    assert job["parameters"]["captions"] == str(inside / "captions.jsonl")
    job = submit(client, kind="train", config_file="train.yaml")
    job = submit(client, **training_job(data={"kind": "manifest", "train": "captions.jsonl"}))
    job_store = client.app.state.services.jobs.job_store
    config = json.loads((job_store.job_folder(job["job_id"]) / "config.json").read_text())
    assert config["data"]["train"] == str(inside / "captions.jsonl")


def test_without_allowed_folders_no_path_is(clip_store, tiny_encoder, tmp_path):
    with serving(clip_store, tiny_encoder, tmp_path) as client:
        for path in ("/", str(tmp_path), "."):
            assert_problem(client.post("/v1/jobs", json={"kind": "evaluate", "data": path}), 422, mentions="names no")


def test_a_job_is_accepted_kept_listed_and_described(client, job_store):
    job = submit(client, **TRAIN)
    assert (job["state"], job["kind"], job["attempts"]) == ("queued", "train", 0)
    assert client.get(f"/v1/jobs/{job['job_id']}").json() == job
    page = client.get("/v1/jobs", params={"kind": "train", "state": "queued", "limit": 1}).json()
    assert page["jobs"] == [job]
    assert page["total"] == job_store.count(kind="train", state="queued")
    assert page["counts"]["queued"] == job_store.count(state="queued")
    assert_problem(client.get(f"/v1/jobs/{NO_JOB}"), 404)
    assert_problem(client.get("/v1/jobs/..%2f..%2fetc"), 404)
    assert_problem(client.get("/v1/jobs/nonsense"), 422)


def test_cancel_resume_and_delete(client, job_store):
    job_id = submit(client, **TRAIN)["job_id"]
    assert_problem(client.delete(f"/v1/jobs/{job_id}"), 409)
    assert client.post(f"/v1/jobs/{job_id}/cancel").json()["state"] == "cancelled"
    assert client.post(f"/v1/jobs/{job_id}/resume").json()["state"] == "queued"
    assert_problem(client.post(f"/v1/jobs/{job_id}/resume"), 409, mentions="queued")
    client.post(f"/v1/jobs/{job_id}/cancel")
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert not job_store.job_folder(job_id).exists()
    assert_problem(client.delete(f"/v1/jobs/{job_id}"), 404)


def test_only_a_finished_training_can_be_built_upon(client, job_store, folder):
    made = submit(client, **TRAIN)["job_id"]
    uses = {"kind": "index", "paths": ["deep"], "store": "new", "model": made}
    assert_problem(client.post("/v1/jobs", json=uses), 409, mentions="no checkpoint")
    job_store.start(made, pid=1, host="here")
    job_store.succeed(made, {"checkpoint": "run/model.safetensors"})
    user = submit(client, **uses)["job_id"]
    again = submit(client, **TRAIN, start_from=made)["job_id"]
    config = json.loads((job_store.job_folder(again) / "config.json").read_text())
    assert config["start_from"] == str((job_store.job_folder(made) / "run" / "model.safetensors").absolute())
    assert_problem(client.delete(f"/v1/jobs/{made}"), 409, mentions=user)
    assert_problem(client.post("/v1/jobs", json={**uses, "model": user}), 409, mentions="no checkpoint")
    assert_problem(client.post("/v1/index/reload", json={"index": user}), 409, mentions="queued")
    assert_problem(client.post("/v1/index/reload", json={"index": NO_JOB}), 404)


def test_a_job_whose_process_is_gone_is_told_as_lost(client, job_store):
    job_id = submit(client, **TRAIN)["job_id"]
    job_store.start(job_id, pid=1, host="here")
    assert client.get(f"/v1/jobs/{job_id}").json()["state"] == "running"
    job_store.let_go(job_id)  # as the kernel does when the process dies
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert (job["state"], job["resumable"]) == ("lost", True)
    assert job_id in {lost["job_id"] for lost in client.get("/v1/jobs", params={"state": "lost"}).json()["jobs"]}


def test_log_with_offset_and_ranges(client, job_store):
    job_id = submit(client, **TRAIN)["job_id"]
    url = f"/v1/jobs/{job_id}/log"
    assert client.get(url).text == ""
    job_store.append_log(job_id, "eins <b>zwei</b>")
    job_store.append_log(job_id, "dreizehn")
    whole = client.get(url)
    assert whole.text == "eins <b>zwei</b>\ndreizehn\n"
    assert whole.headers["content-type"] == "text/plain; charset=utf-8"
    assert client.get(url, headers={"Range": "bytes=5-7"}).text == "<b>"
    assert whole.headers["x-log-size"] == str(len(whole.content))
    rest = client.get(url, params={"offset": 17})
    assert rest.text == "dreizehn\n"
    assert client.get(url, params={"offset": rest.headers["x-log-size"]}).text == ""


def test_events_follow_a_job_to_its_end(client, job_store):
    job_id = submit(client, **TRAIN)["job_id"]
    job_store.append_log(job_id, "before")
    job_store.start(job_id, pid=1, host="here")

    def work():
        job_store.progress(job_id, 1, 2, "half")
        job_store.append_log(job_id, "after")
        job_store.succeed(job_id, {"n": 1})

    threading.Timer(1.0, work).start()
    events = client.get(f"/v1/jobs/{job_id}/events").text.strip().split("\n\n")
    parsed = [dict(line.split(": ", 1) for line in event.splitlines()) for event in events]
    states = [json.loads(event["data"])["state"] for event in parsed if event["event"] == "job"]
    assert (states[0], states[-1]) == ("running", "succeeded")
    logs = [event for event in parsed if event["event"] == "log"]
    assert "".join(json.loads(event["data"]) for event in logs) == "before\nafter\n"
    assert logs[-1]["id"] == str(len("before\nafter\n"))
    again = client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": "7"}).text
    assert '"after\\n"' in again
    assert "before" not in again


def test_metrics_are_the_lines_of_the_trainings_log(client, job_store):
    job_id = submit(client, **TRAIN)["job_id"]
    assert client.get(f"/v1/jobs/{job_id}/metrics").json() == {"job_id": job_id, "metrics": []}
    log = job_store.job_folder(job_id) / "run" / "log.jsonl"
    log.parent.mkdir()
    lines = [{"step": 1, "loss": 2.5}, {"step": 2, "validation": {"text_to_video": {"R@1": 12.5}}}]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "lo')
    assert client.get(f"/v1/jobs/{job_id}/metrics").json()["metrics"] == lines
    progress = TrainingProgress(log, 10)
    assert progress.latest() == JobProgress(done=2, total=10, note="loss 2.500, validation R@1 12.5")
    assert progress.latest() is None
    log.write_text('{"step": 1, "steps": 40, "loss": 2.5}\n')
    epochs = TrainingProgress(log, 0)  # a configuration that counts epochs does not say how many steps they are
    assert epochs.latest() == JobProgress(done=1, total=40, note="loss 2.500")


def test_scopes_and_whose_job_it_is(clip_store, tiny_encoder, tmp_path):
    _, tokens = make_keys(tmp_path)
    with serving(clip_store, tiny_encoder, tmp_path, require_keys=True) as client:
        for scope in ("search", "write"):
            assert_problem(client.post("/v1/jobs", json=TRAIN, headers=bearer(tokens[scope])), 403)
            assert_problem(client.get("/v1/jobs", headers=bearer(tokens[scope])), 403)
        job = client.post("/v1/jobs", json=TRAIN, headers=bearer(tokens["admin"])).json()
        assert job["key_name"] == "adminer"


def test_a_full_queue_is_503_and_accepts_nothing_and_jobs_need_no_redis(clip_store, tiny_encoder, tmp_path):
    with serving(clip_store, tiny_encoder, tmp_path, max_jobs=2) as client:
        kept = [submit(client, **TRAIN)["job_id"] for _ in range(2)]
        refused = client.post("/v1/jobs", json=TRAIN)
        assert_problem(refused, 503, mentions="2 jobs wait")
        assert int(refused.headers["retry-after"]) >= 1
    with serving(clip_store, tiny_encoder, tmp_path, redis_url="redis://127.0.0.1:1") as client:
        assert [job["job_id"] for job in client.get("/v1/jobs").json()["jobs"]] == kept[::-1]
        assert client.post(f"/v1/jobs/{kept[0]}/cancel").json()["state"] == "cancelled"
        assert submit(client, **TRAIN)["state"] == "queued"


def test_a_full_disk_is_503_and_accepts_nothing(clip_store, tiny_encoder, tmp_path, monkeypatch):
    with serving(clip_store, tiny_encoder, tmp_path) as client:
        job_store = client.app.state.services.jobs.job_store
        submit(client, **TRAIN)

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("service.jobs.store.write_atomically", full)
        assert_problem(client.post("/v1/jobs", json=TRAIN), 503, mentions="cannot be written")
        assert job_store.count() == 1
