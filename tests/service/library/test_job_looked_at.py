"""An accepted video whose job or bytes are held elsewhere for a moment is added all the same."""

import io
import shutil
import threading
import time
from pathlib import Path

from service_support import serving

from service.jobs.store import JobStore
from service.library.upload_queue import KIND, AdditionWork
from service.library.upload_store import Accepted, UploadStore


def accept(store, jobs, content):
    """Accept a video as a service does that is killed right then; the store of jobs, and what was accepted."""
    uploads = UploadStore(store)
    uploads.own()
    received = uploads.receive(io.BytesIO(content))
    job = jobs.create(KIND, {"video_id": received.video_id}, key_name=None, resumable=True)
    accepted = Accepted(
        video_id=received.video_id,
        path=str(uploads.place_of(received)),
        size_bytes=received.size_bytes,
        job_id=job.job_id,
        title=None,
        tags=(),
        captions=(),
    )
    uploads.accept(received, accepted)
    uploads.close()
    return accepted


def until_indexed(client, video_id):
    deadline = time.monotonic() + 60
    while client.get(f"/v1/videos/{video_id}").json()["state"] != "indexed":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_accepted_video_is_kept_while_another_process_looks_at_its_job(clip_store, tiny_encoder, tmp_path, clips):
    shutil.copytree(clip_store / "store", tmp_path / "store")
    looking = JobStore(tmp_path / "jobs")
    accepted = accept(tmp_path / "store", looking, clips[0])
    looking.claim(accepted.job_id, pid=1, host="elsewhere")  # it runs, and its lock is held, as while one looks at it
    with serving(clip_store, tiny_encoder, tmp_path, store=tmp_path / "store") as client:
        time.sleep(0.5)
        assert client.get(f"/v1/videos/{accepted.video_id}").json()["state"] == "pending"
        looking.let_go(accepted.job_id)
        until_indexed(client, accepted.video_id)
        assert client.get(f"/v1/jobs/{accepted.job_id}").json()["state"] == "succeeded"
    looking.close()


def test_an_accepted_video_is_kept_while_its_bytes_are_set_aside(
    clip_store, tiny_encoder, tmp_path, clips, monkeypatch
):
    shutil.copytree(clip_store / "store", tmp_path / "store")
    jobs = JobStore(tmp_path / "jobs")
    accepted = accept(tmp_path / "store", jobs, clips[0])
    path = Path(accepted.path)
    opened = AdditionWork.open_bytes

    def set_aside_then_open(self, one):
        path.rename(path.with_suffix(".aside"))
        threading.Timer(0.3, lambda: path.with_suffix(".aside").rename(path)).start()
        return opened(self, one)

    monkeypatch.setattr(AdditionWork, "open_bytes", set_aside_then_open)
    with serving(clip_store, tiny_encoder, tmp_path, store=tmp_path / "store") as client:
        until_indexed(client, accepted.video_id)
        assert client.get(f"/v1/jobs/{accepted.job_id}").json()["state"] == "succeeded"
    jobs.close()
