"""Checks of what is served: the model, the index, both together, the decoder of uploads, and the batch jobs."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from model.clip.preprocess import Preprocess
from service.doctor.checks import Check, Context, Examination, ok, problem, warning

WAITING_TOO_LONG_SECONDS = 60.0


def check_model(context: Context) -> Check:
    """The model of the settings, or else of the index, loads and encodes."""
    from indexer.store.generation import read_current
    from model.encoder import load_encoder

    settings = context.settings
    name, pretrained = settings.model, settings.pretrained
    if name is None:
        spec = read_current(settings.store).model_spec  # raises with what to do if nothing is there
        name, pretrained = spec.model, pretrained or spec.pretrained
    encoder = load_encoder(
        name,
        pretrained=pretrained,
        device=settings.device,
        precision=settings.precision,
        runtime=settings.runtime,
        exports=settings.exports,
    )
    started = time.perf_counter()
    row_1D = encoder.encode_texts(["a video"])
    milliseconds = (time.perf_counter() - started) * 1000
    if not np.isfinite(row_1D).all() or not np.any(row_1D):
        return problem(
            "the model encodes a text to zeros or NaN",
            "use --runtime torch --precision fp32, or fetch the weights again",
        )
    context.encoder = encoder
    by = f"{encoder.runtime.label} ({encoder.runtime.reason})"
    return ok(f"{encoder.config.name}, fingerprint {encoder.fingerprint[:12]}, {by}, a text in {milliseconds:.0f} ms")


def check_index(context: Context) -> Check:
    """The index opens: checksums of its generation, sizes and headers of its shards; the demo model fits it."""
    from indexer.store.demo_notice import demo_notice
    from indexer.store.reader import StoreReader
    from service.search.engine import serving_of

    context.reader = StoreReader.open(context.settings.store, serving=serving_of(context.settings))
    counts = context.reader.counts
    detail = f"generation {context.reader.manifest.generation}: {counts.videos} videos, {counts.captions} captions"
    notice = demo_notice(context.reader)
    if notice:
        return warning(f"{detail}; {notice}", "index them with --model small, base or large into another store")
    if counts.videos == 0:
        return warning(detail, "index videos: emcl index add PATH")
    if counts.failed:
        return warning(f"{detail}, {counts.failed} failed", "see why: emcl index list")
    return ok(f"{detail}; checksums agree (what the shards hold: emcl index verify)")


def check_fingerprint(context: Context) -> Check:
    """The index was built with this model."""
    encoder, manifest = context.need_encoder(), context.need_reader().manifest
    if encoder.fingerprint != manifest.fingerprint:
        if manifest.fingerprint in encoder.former_fingerprints():
            return problem(
                "the index was built with these weights, but its frames were prepared in another way than they want",
                "index the videos into a new store: emcl index build VIDEOS --store NEW",
            )
        return problem(
            f"the index was built with checkpoint {manifest.fingerprint[:12]}, the model is {encoder.fingerprint[:12]}",
            "leave out --model, or index the videos into another store with this model",
        )
    return ok(f"index and model agree on {encoder.fingerprint[:12]}")


def check_search(context: Context) -> Check:
    """A query goes through every stage."""
    from indexer.store.reader import StoreReader
    from service.search.engine import Engine, serving_of
    from service.search.values import QueryLimits

    encoder = context.need_encoder()
    context.need_reader()
    engine = Engine(
        encoder,
        lambda: StoreReader.open(
            context.settings.store, fingerprint=encoder.fingerprint, serving=serving_of(context.settings)
        ),
        limits=QueryLimits.from_settings(context.settings),
        cache_entries=0,
    )
    try:
        result = engine.probe()
        active = engine.active()
    finally:
        engine.close()
    stages = ", ".join(f"{stage} {seconds * 1000:.0f} ms" for stage, seconds in result.source.stage_seconds.items())
    return ok(f"{len(result.hits)} hit: {stages}; EMCL: {active.text}")


def check_decoding(context: Context) -> Check:
    """An upload is decoded in its sandboxed process."""
    from model.config import SamplingConfig
    from model.demo.corpus import write_clip
    from model.demo.scene import make_scene
    from service.media.sandbox import Sandbox, SandboxLimits

    with tempfile.TemporaryDirectory(dir=context.settings.upload_folder) as folder:
        path = Path(folder) / "clip.mp4"
        write_clip(make_scene(0, "test", 0), path)
        with path.open("rb") as file:
            video = Sandbox(SandboxLimits.from_settings(context.settings)).decode(
                file, sampling=SamplingConfig(), preprocess=Preprocess.square(32)
            )
    return ok(f"{len(video.frames_FHWC)} frames of {video.duration_seconds:.1f} s")


def check_writer(context: Context) -> Check:
    """Whether a process writes the store at this moment, and who."""
    from indexer.store.writer import LOCK, LOCK_HOLDER

    lock, holder = context.settings.store / LOCK, context.settings.store / LOCK_HOLDER
    if not lock.exists() or not _is_held(lock):
        return ok("no process is writing the store")
    try:
        named = json.loads(holder.read_text(encoding="utf-8"))
        who = f"process {named['pid']} on {named['host']} since {named['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has just begun or just ended
        who = "another process"
    return ok(f"the store is being written by {who}; searching goes on meanwhile")


def check_jobs(context: Context) -> Check:
    """The job store can be read, and a worker runs its jobs."""
    from service.jobs.store import JobStore

    settings = context.settings
    job_store = JobStore(settings.jobs_folder)
    if not job_store.exists:
        return ok("no job was ever submitted")
    try:
        counts = job_store.counts()
        waiting = job_store.list(state="queued", limit=1000)
    finally:
        job_store.close()
    detail = ", ".join(f"{number} {state}" for state, number in counts.items() if number) or "none kept"
    oldest = max((time.time() - job.created for job in waiting), default=0.0)
    if waiting and counts["running"] == 0 and oldest > WAITING_TOO_LONG_SECONDS:
        return problem(f"{detail}; the oldest waits for {oldest:.0f} s and none runs", "start a worker: emcl worker")
    if counts["lost"]:
        return warning(f"{detail}: the processes of lost ones died", "resume them: POST /v1/jobs/ID/resume")
    return ok(detail)


EXAMINATIONS: tuple[tuple[str, Examination], ...] = (
    ("model", check_model),
    ("index", check_index),
    ("fingerprint", check_fingerprint),
    ("search", check_search),
    ("decoding", check_decoding),
    ("writer", check_writer),
    ("jobs", check_jobs),
)


def _is_held(lock: Path) -> bool:
    """Whether a process holds the lock; asking takes it for an instant."""
    descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
