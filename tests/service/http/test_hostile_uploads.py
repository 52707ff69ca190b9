"""A real server under a corpus of hostile files and forms: it answers each with a reason, in time, and stays as it was.

After each file the ready check passes; after each group the process is the same, its memory is bounded, nothing that it
started still runs, no file is left over, and neither the bait's folder nor its address was touched.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from hostile_clips import bases
from hostile_files import Bait
from hostile_forms import Form, Listener, Watch, forms, laid_out
from hostile_videos import SEED, Hostile, corpus

MEBIBYTE = 1024**2
DECODE_SECONDS, UPLOAD_SECONDS = 4.0, 2.0
# What comes on top of these on a machine that is busy with other tests: the start of processes, the queue, the search.
MARGIN_SECONDS = 60.0
IN_FLIGHT = 3
GROWTH_BYTES = 200 * MEBIBYTE
GROUPS = ("whole", "flips", "truncations", "lies", "headers", "bombs", "timestamps", "streams", "others", "pointers")
GROUPS += ("strangers", "polyglots")
SMALLEST_CORPUS = 200
# Of the groups that are many of a kind, the suite takes every so manieth; the slow test takes the rest.
EVERY = {"flips": 3, "lies": 2, "truncations": 2}


class Target:
    """The server under attack, and what can be seen of it from outside."""

    def __init__(self, server, folder: Path, watch: Watch, listener: Listener) -> None:
        self.url, self.port, self.log = server.url, server.port, server.said
        self.process = psutil.Process(server.process.pid)
        self.folder, self.watch, self.listener = folder, watch, listener
        self.http = httpx.Client(base_url=self.url, timeout=DECODE_SECONDS + MARGIN_SECONDS)
        assert self.http.get("/health/ready").status_code == 200
        self._pid, self._born = self.process.pid, self.process.create_time()
        self._memory = self.process.memory_info().rss

    def ready(self) -> None:
        """The ready check passes; it may have to wait for its turn."""
        answer = self.http.get("/health/ready")
        assert answer.status_code == 200, answer.text

    def unharmed(self) -> None:
        """Nothing of the server has changed, and nothing was touched that it had no business with."""
        assert self.process.is_running()
        assert (self.process.pid, self.process.create_time()) == (self._pid, self._born)
        _until(lambda: not self._decoders())
        assert self.process.memory_info().rss - self._memory < GROWTH_BYTES
        assert list((self.folder / "uploads").iterdir()) == []
        assert self.watch.seen() == []
        assert self.listener.calls == []
        assert not [line for line in self.log if "Traceback" in line or "incident" in line]

    def _decoders(self) -> list[psutil.Process]:
        """All that the server started, but for the one process that starts decoders."""
        started = self.process.children(recursive=True)
        fork_servers = [one for one in self.process.children() if "service.media.fork_server" in one.cmdline()]
        assert len(fork_servers) <= 1
        return [one for one in started if one not in fork_servers]


def _until(condition: Callable[[], object], seconds: float = MARGIN_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@contextmanager
def attacked(start_server, folder: Path, store: Path, model: Path, decode_seconds: float) -> Iterator[Target]:
    """A server of its own, with traps laid out around it."""
    shutil.copytree(store, folder / "store")
    for name in ("uploads", "bait"):
        (folder / name).mkdir()
    with laid_out(folder / "bait", bases()["mp4"]) as (watch, listener):
        server = start_server(
            *("--store", folder / "store", "--model", model, "--jobs-folder", folder / "jobs"),
            *("--upload-folder", folder / "uploads", "--upload-max-bytes", "8MiB"),
            *("--upload-workers", IN_FLIGHT, "--upload-slots", IN_FLIGHT, "--upload-timeout-seconds", UPLOAD_SECONDS),
            *("--decode-wall-seconds", decode_seconds, "--decode-memory-bytes", "512MiB"),
            *("--rate-limit", 0, "--upload-rate-per-minute", 0, "--embedded-worker", "off", "--watch-seconds", 0),
        )
        made = Target(server, folder, watch, listener)
        yield made
        made.http.close()


@pytest.fixture(scope="module")
def target(start_server, clip_store, tiny_checkpoint, tmp_path_factory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("hostile")
    with attacked(start_server, folder, clip_store / "store", tiny_checkpoint, DECODE_SECONDS) as made:
        yield made


@pytest.fixture(scope="module")
def patient_target(start_server, clip_store, tiny_checkpoint, tmp_path_factory) -> Iterator[Target]:
    """For sound videos in odd requests: a busy machine may take long to decode them, and they must not be refused."""
    folder = tmp_path_factory.mktemp("patient")
    with attacked(start_server, folder, clip_store / "store", tiny_checkpoint, MARGIN_SECONDS) as made:
        yield made


@pytest.fixture(scope="module")
def files(target) -> Sequence[Hostile]:
    return corpus(_bait(target))


def _bait(target: Target) -> Bait:
    return Bait(folder=str(target.folder / "bait"), url=f"http://127.0.0.1:{target.listener.port}")


def check_problem(answer: httpx.Response) -> None:
    """A refusal says what was wrong, what would have been right, and what to do."""
    assert 400 <= answer.status_code < 500, f"{answer.status_code}: {answer.text}"
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == answer.status_code
    assert all(problem[field] for field in ("type", "title", "detail", "expected", "next_step"))
    assert "/tmp" not in answer.text


def check_answer(answer: httpx.Response) -> None:
    """An answer is one: finite times within the video, weights that sum to one, scores in order."""
    found = json.loads(answer.text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    seconds = found["upload"]["duration_seconds"]
    assert math.isfinite(seconds)
    assert 0 <= seconds <= 3600
    assert found["upload"]["frames"] >= 1
    assert len(found["captions"]) == len(found["hits"]) == 3
    for hits in (found["captions"], found["hits"]):
        scores = [hit["score"] for hit in hits]
        # Scores that differ only in their last bits count as equal, and stand in the order of their ids.
        assert all(first >= second - 1e-6 for first, second in itertools.pairwise(scores))
        assert all(-1.001 <= score <= 1.001 for score in scores)
    for caption in found["captions"]:
        assert 0 <= caption["moment"] <= seconds
        assert sum(frame["weight"] for frame in caption["frame_weights"]) == pytest.approx(1, abs=1e-3)


def search_with(target: Target, file: Hostile) -> None:
    """Upload one file, check what comes back and when, and that the server is ready for the next."""
    started = time.monotonic()
    answer = target.http.post("/v1/search/video?k=3", files={"file": ("../../etc/passwd", file.content)})
    took = time.monotonic() - started
    assert took < DECODE_SECONDS + MARGIN_SECONDS, f"{file.name} took {took:.1f} s"
    if answer.status_code == 200:
        assert file.outcome != "refused", f"{file.name} was taken for a video"
        check_answer(answer)
    else:
        assert file.outcome != "accepted", f"{file.name} was refused: {answer.text}"
        check_problem(answer)
    target.ready()


def all_at_once(work: Callable[[Hostile], None], files: Sequence[Hostile]) -> None:
    """A few at a time; every failure is reported with its file."""

    def one(file: Hostile) -> str | None:
        try:
            work(file)
        except AssertionError as error:
            return f"{file.name}: {error}"
        return None

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        trouble = [found for found in pool.map(one, files) if found]
    assert not trouble, "\n".join(trouble)


def test_the_corpus_is_large_and_the_same_for_the_same_seed(target, files):
    taken = [file for group in GROUPS for file in of(files, group)]
    assert len({hashlib.sha256(file.content).digest() for file in taken}) >= SMALLEST_CORPUS
    assert len({file.name for file in files}) == len(files)
    assert {file.group for file in files} == set(GROUPS)
    bases.cache_clear()
    assert corpus(_bait(target)) == files
    assert corpus(_bait(target), seed=SEED + 1) != files


def test_the_bait_notices_who_takes_it(target):
    (target.folder / "bait" / "secret.mp4").read_bytes()
    assert "secret.mp4" in target.watch.seen()
    with pytest.raises(httpx.TransportError):
        httpx.get(_bait(target).url)
    _until(lambda: target.listener.calls)
    target.listener.calls.clear()


def of(files: Sequence[Hostile], group: str) -> Sequence[Hostile]:
    """The files of a group that the suite takes."""
    return [file for file in files if file.group == group][:: EVERY.get(group, 1)]


@pytest.mark.parametrize("group", GROUPS)
def test_every_file_gets_a_reason_or_a_correct_answer(target, files, group):
    chosen = of(files, group)
    assert chosen
    all_at_once(lambda file: search_with(target, file), chosen)
    target.unharmed()


def add(target: Target, file: Hostile) -> None:
    """Add a file as a video: it is refused, or its job ends, and then it is wholly there or wholly gone."""
    answer = target.http.post("/v1/videos", files={"file": ("x.mp4", file.content)}, data={"tags": "hostile"})
    if answer.status_code not in (200, 202):
        check_problem(answer)
        return
    added = answer.json()
    video_id = hashlib.sha256(file.content).hexdigest()
    assert added["video_id"] == video_id
    job: dict[str, object] = {}

    def ended() -> bool:
        job.update(target.http.get(added["job_url"]).json())
        return job["state"] in ("succeeded", "failed", "cancelled", "lost")

    if added["job_id"] is not None:
        _until(ended, 4 * MARGIN_SECONDS)
    kept = list(
        (target.folder / "store" / "media").glob(f"{video_id}.[!j]*")
    )  # the record goes after the job has ended
    if job.get("state", "succeeded") == "succeeded":
        assert file.outcome != "refused", f"{file.name} was taken for a video"
        assert len(kept) == 1
        looked_at(target, video_id)
    else:
        assert job["state"] == "failed"
        assert file.outcome != "accepted", job["error"]
        assert job["error"]
        assert kept == []
        assert target.http.get(f"/v1/videos/{video_id}").status_code == 404


def looked_at(target: Target, video_id: str) -> None:
    """A video that was added can be described, pictured, streamed and searched for; or says why not."""
    video = target.http.get(f"/v1/videos/{video_id}").json()
    assert video["state"] == "indexed"
    assert math.isfinite(video["duration_seconds"])
    for place in ("thumbnail", "thumbnail?t=9999999"):
        picture = target.http.get(f"/v1/videos/{video_id}/{place}")
        if picture.status_code == 200:
            assert picture.content.startswith(b"\xff\xd8")
        else:
            check_problem(picture)
    stream = target.http.get(f"/v1/videos/{video_id}/stream", headers={"Range": "bytes=0-9"})
    assert stream.status_code == 206
    assert stream.headers["x-content-type-options"] == "nosniff"
    similar = target.http.post("/v1/search", json={"video_id": video_id, "k": 5})
    assert similar.status_code == 200, similar.text


def test_added_as_videos_they_end_well_or_are_gone(target, files):
    """Some of each kind of trouble."""
    every = {"flips": 9, "lies": 12, "truncations": 9, "bombs": 9, "timestamps": 6}
    chosen = [file for group in GROUPS for file in of(files, group)[1 :: every.get(group, 12)]]
    assert len(chosen) > 15
    all_at_once(lambda file: add(target, file), chosen)
    target.ready()
    target.unharmed()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [SEED, SEED + 1])
def test_the_rest_of_many_of_a_kind(target, seed):
    """Once more with another seed, of which the flips and cuts depend."""
    every = corpus(_bait(target), seed)
    taken = {file.name for group in GROUPS for file in of(every, group)} if seed == SEED else set()
    groups = set(EVERY) if seed == SEED else {"flips", "truncations"}
    chosen = [file for file in every if file.group in groups and file.name not in taken]
    all_at_once(lambda file: search_with(target, file), chosen)
    target.unharmed()


def send(target: Target, form: Form, path: str) -> tuple[int, bytes]:
    """Send a request as it is; the status and body of the answer."""
    answer = b""
    with socket.create_connection(("127.0.0.1", target.port), timeout=UPLOAD_SECONDS + MARGIN_SECONDS) as connection:
        try:
            connection.sendall(form.request(path, target.port))
            while b"\r\n\r\n" not in answer or len(answer) < _length(answer):
                piece = connection.recv(65536)
                if not piece:
                    break
                answer += piece
        except (ConnectionResetError, BrokenPipeError):
            pass  # it answered before it had read everything
    status = int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0
    return status, answer.partition(b"\r\n\r\n")[2]


def _length(answer: bytes) -> int:
    head = answer.partition(b"\r\n\r\n")[0]
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return len(head) + 4 + int(lengths[0].split(b":")[1]) if lengths else 1 << 40


@pytest.mark.parametrize("path", ["/v1/search/video?k=3", "/v1/videos"])
def test_forms_that_are_none_are_refused_with_a_reason(patient_target, path):
    trouble = []

    def one(form: Form) -> None:
        status, body = send(patient_target, form, path)
        if status not in form.right:
            trouble.append(f"{form.name}: {status} {body[:300]!r}")
        elif status >= 400 and b"next_step" not in body and b"Invalid HTTP" not in body:
            trouble.append(f"{form.name}: no next step in {body[:300]!r}")
        patient_target.ready()

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        list(pool.map(one, forms(bases()["webm"])))
    assert not trouble, "\n".join(trouble)
    patient_target.unharmed()
