"""An accepted video whose job another process is looking at is added all the same."""

import io
import shutil
import time

from service_support import serving

from service.jobs.store import JobStore
from service.library.upload_queue import KIND
from service.library.upload_store import Accepted, UploadStore


def test_an_accepted_video_is_kept_while_another_process_looks_at_its_job(clip_store, tiny_encoder, tmp_path, clips):
    shutil.copytree(clip_store / "store", tmp_path / "store")
    uploads = UploadStore(tmp_path / "store")
    uploads.own()
    received = uploads.receive(io.BytesIO(clips[0]))
    looking = JobStore(tmp_path / "jobs")
    job = looking.create(KIND, {"video_id": received.video_id}, key_name=None, resumable=True)
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
    looking.claim(job.job_id, pid=1, host="elsewhere")  # it runs, and its lock is held, as while one looks at it
    with serving(clip_store, tiny_encoder, tmp_path, store=tmp_path / "store") as client:
        time.sleep(0.5)
        assert client.get(f"/v1/videos/{received.video_id}").json()["state"] == "pending"
        looking.let_go(job.job_id)
        deadline = time.monotonic() + 60
        while client.get(f"/v1/videos/{received.video_id}").json()["state"] != "indexed":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert client.get(f"/v1/jobs/{job.job_id}").json()["state"] == "succeeded"
    looking.close()
