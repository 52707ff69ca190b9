"""Uploads: what is refused and why, what is left behind (nothing), and what a hostile decoder can do (nothing)."""

import asyncio
import io
import socket
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from fastapi.testclient import TestClient
from starlette.requests import ClientDisconnect, Request

from indexer.store.reader import StoreReader
from model.clip.preprocess import Preprocess
from model.config import SamplingConfig
from service.app import create_app
from service.errors import (
    BadRequest,
    Overloaded,
    RequestTimeout,
    ServiceError,
    TooLarge,
    Unprocessable,
    UnsupportedMedia,
)
from service.http.uploads import UploadReceiver
from service.media import fork_server
from service.media import sandbox as sandbox_module
from service.media.sandbox import Sandbox, SandboxLimits
from service.search.engine import Engine
from service.search.values import QueryLimits
from service.settings import load_settings

MEBIBYTE = 1024**2
SAMPLING = SamplingConfig(sample_fps=2.0, max_frames=6)
BOUNDARY = "the-boundary"


# Files that are no use.


def audio_file():
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def frameless_video():
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    return buffer.getvalue()


def mp4_with_index_at_the_end():
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        noise = np.random.default_rng(0)
        for _ in range(10):
            image = noise.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


REFUSED = {
    "text": (lambda: b"This is no video.\n" * 50, 415),
    "empty": (lambda: b"", 422),
    "audio": (audio_file, 422),
    "truncated": (lambda: mp4_with_index_at_the_end()[:2000], 415),
    "frameless": (frameless_video, 422),
    "zeros": (lambda: bytes(5000), 415),
    "playlist": (lambda: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", 415),
}


# The sandboxed process.


def make_sandbox(**options):
    return Sandbox(SandboxLimits.from_settings(load_settings(options)))


def decode(sandbox, content):
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        return sandbox.decode(file, sampling=SAMPLING, preprocess=Preprocess.square(32))


def test_the_sandbox_gives_what_decoding_here_gives(clip_store):
    from model.video.sampling import decode as decode_here

    path = clip_store / "clips" / "clip_0.mp4"
    sandboxed = decode(make_sandbox(), path.read_bytes())
    batch = decode_here(path, sampling=SAMPLING)
    np.testing.assert_array_equal(sandboxed.frames_FHWC, Preprocess.square(32)(batch.frames))
    np.testing.assert_array_equal(sandboxed.timestamps_seconds, batch.timestamps_seconds)
    assert sandboxed.duration_seconds == batch.duration_seconds


@pytest.mark.parametrize("name", sorted(set(REFUSED) - {"empty"}))
def test_the_sandbox_says_what_is_wrong_with_a_file(name):
    content, status = REFUSED[name]
    with pytest.raises((UnsupportedMedia, Unprocessable)) as refusal:
        decode(make_sandbox(), content())
    assert refusal.value.status == status
    assert len(refusal.value.detail) > 10


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"upload_max_seconds": 0.5}, "lasts"),
        ({"upload_max_pixels": 100}, "pixels"),
        ({"upload_max_bytes": 1000}, "bytes"),
        ({"decode_wall_seconds": 0.02}, "longer than 0.02 seconds"),
    ],
)
def test_the_sandbox_refuses_what_is_over_a_limit(clip_store, options, complaint):
    with pytest.raises(TooLarge, match=complaint):
        decode(make_sandbox(**options), (clip_store / "clips" / "clip_0.mp4").read_bytes())


def with_worker(monkeypatch, code):
    """Let the children of new fork servers run ``code`` on their ``job`` instead of decoding."""
    served = f"import sys; from service.media.fork_server import serve; worker = compile({code!r}, 'worker', 'exec')\n"
    served += "def run(job): exec(worker, {'job': job}); sys.stdout.flush()\nserve({'decode': run})"
    monkeypatch.setattr(fork_server, "SERVER", ("-c", served))


def test_a_decoder_that_spins_is_stopped(monkeypatch):
    with_worker(
        monkeypatch,
        "from service.media.process_limits import limit_process\n"
        "limit_process(cpu_seconds=job['cpu_seconds'], memory_bytes=job['memory_bytes'], file_bytes=0)\n"
        "while True: pass",
    )
    with pytest.raises(TooLarge, match="CPU seconds"):
        decode(make_sandbox(decode_cpu_seconds=1, decode_wall_seconds=60), b"x")
    started = time.monotonic()
    with pytest.raises(TooLarge, match=r"longer than 0\.5 seconds"):
        decode(make_sandbox(decode_wall_seconds=0.5), b"x")
    assert time.monotonic() - started < 10


def test_a_decoder_that_sleeps_after_its_answer_is_stopped(monkeypatch):
    with_worker(monkeypatch, "import os, time; os.close(1); os.close(2); time.sleep(60)")
    with pytest.raises(TooLarge, match="longer than"):
        decode(make_sandbox(decode_wall_seconds=0.5), b"x")


def test_a_decoder_that_crashes_harms_nobody(monkeypatch):
    with_worker(monkeypatch, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(Unprocessable, match="SIGSEGV"):
        decode(make_sandbox(), b"x")


def test_a_decoder_that_floods_is_cut_off(monkeypatch):
    with_worker(monkeypatch, "import os\nwhile True: os.write(1, bytes(65536))")
    with pytest.raises(Unprocessable, match="SIGKILL"):
        decode(make_sandbox(), b"x")


def test_an_answer_with_pickled_objects_is_not_read(monkeypatch):
    with_worker(
        monkeypatch,
        "import numpy as np, sys, io\n"
        "out = io.BytesIO(); np.save(out, np.array([{}], dtype=object), allow_pickle=True)\n"
        "sys.stdout.buffer.write(b'{\"duration_seconds\": 1}\\n' + out.getvalue())",
    )
    with pytest.raises(ValueError, match="allow_pickle"):
        decode(make_sandbox(), b"x")


def test_a_decoder_that_cannot_start_is_our_fault(monkeypatch):
    with_worker(monkeypatch, "import no_such_module")
    with pytest.raises(RuntimeError, match="no_such_module"):
        decode(make_sandbox(), b"x")


def test_the_sandbox_has_no_environment_and_writes_no_file(monkeypatch, tmp_path):
    monkeypatch.setenv("EMCL_SECRET", "value")
    with_worker(
        monkeypatch,
        "import json, os\n"
        "from service.media.process_limits import limit_process\n"
        "limit_process(cpu_seconds=job['cpu_seconds'], memory_bytes=job['memory_bytes'], file_bytes=0)\n"
        f"try: open({str(tmp_path / 'out')!r}, 'wb').write(b'x' * 100000); wrote = True\n"
        "except OSError: wrote = False\n"
        "print(json.dumps({'error': 'Seen', 'message': f'{wrote} {os.environ.get(\"EMCL_SECRET\")} {os.getcwd()}'}))",
    )
    seen = []
    monkeypatch.setattr(sandbox_module.logger, "warning", lambda *args: seen.append(args))
    with pytest.raises(Unprocessable):
        decode(make_sandbox(), b"x")
    assert seen[0][2] == "False None /"


def test_a_file_is_decoded_again_from_its_beginning_if_the_fork_server_died(monkeypatch, tmp_path):
    with_worker(
        monkeypatch,
        "import json, os, pathlib, time\n"
        f"content, died = os.read(0, 9).decode(), pathlib.Path({str(tmp_path / 'died')!r})\n"
        "if not died.exists(): died.touch(); os.kill(os.getppid(), 9); time.sleep(600)\n"
        "print(json.dumps({'error': 'NoFrames', 'message': f'read {content}'}))",
    )
    with pytest.raises(Unprocessable, match="read content"):
        decode(make_sandbox(), b"content")


def test_memory_is_limited(clip_store):
    content = (clip_store / "clips" / "clip_0.mp4").read_bytes()
    code = (
        "import json, sys\n"
        "from service.media.process_limits import limit_process\n"
        "limit_process(cpu_seconds=60, memory_bytes=300 << 20, file_bytes=0)\n"
        "try: bytearray(400 << 20)\n"
        "except MemoryError: print(json.dumps({'error': 'MemoryError', 'message': ''}))"
    )
    with pytest.MonkeyPatch.context() as patch:
        with_worker(patch, code)
        with pytest.raises(TooLarge, match="more memory"):
            decode(make_sandbox(), content)


# Receiving.


def form(content, *, name="file", closed=True, before=b""):
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="../../x.mp4"\r\n\r\n'.encode()
    return before + head + content + (f"\r\n--{BOUNDARY}--\r\n".encode() if closed else b"")


def request_of(body, *, content_type=f"multipart/form-data; boundary={BOUNDARY}", length=None, step=1000, ending=None):
    """A request whose body arrives in pieces; ``ending`` is what follows them (default: the end of the body)."""
    pieces = [body[start : start + step] for start in range(0, len(body), step)]
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append(ending or {"type": "http.request", "body": b"", "more_body": False})
    headers = [(b"content-type", content_type.encode())] if content_type else []
    if length is not None:
        headers.append((b"content-length", str(length).encode()))

    async def receive():
        if not messages:
            await asyncio.sleep(3600)
        return messages.pop(0)

    request = Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)
    request.left = messages
    return request


def receive(request, **options):
    """The received bytes."""
    options = {"max_bytes": 10_000, "slots": 1, "timeout_seconds": 5, "folder": None, **options}
    receiver = UploadReceiver(**options)

    async def run():
        async with receiver.receive(request) as upload:
            content = upload.file.read()
            assert upload.size_bytes == len(content)
            return content

    return asyncio.run(run())


@pytest.mark.parametrize("step", [1, 7, 1000, 100_000])
def test_the_file_arrives_whole_however_it_is_cut(step):
    content = np.random.default_rng(0).bytes(3000) + f"\r\n--{BOUNDARY}".encode()[:-3] + b"\r\n\r\n"
    note = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n'.encode()
    assert receive(request_of(form(content, before=note), step=step)) == content


def test_a_file_of_exactly_the_limit_is_taken_and_one_byte_more_is_not():
    assert len(receive(request_of(form(bytes(10_000))))) == 10_000
    with pytest.raises(TooLarge) as refusal:
        receive(request_of(form(bytes(10_001))))
    assert refusal.value.headers["Connection"] == "close"


def test_reading_stops_at_the_limit():
    request = request_of(form(bytes(500_000)), step=1000)
    with pytest.raises(TooLarge):
        receive(request)
    assert len(request.left) > 480


def test_a_declared_length_over_the_limit_is_refused_unread():
    request = request_of(form(bytes(500_000)), length=500_200)
    with pytest.raises(TooLarge, match="500200 bytes"):
        receive(request)
    assert len(request.left) == 502


def test_other_fields_cannot_be_used_to_send_without_end():
    request = request_of(form(bytes(500_000), name="vide"))
    with pytest.raises(Unprocessable, match="a part named 'vide', and none named `file`") as refusal:
        receive(request)
    assert refusal.value.headers["Connection"] == "close"
    assert len(request.left) > 400
    note = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="note"\r\n\r\n'.encode() + bytes(100_000) + b"\r\n"
    with pytest.raises(TooLarge, match="65536 bytes beside the file"):
        receive(request_of(form(b"a video")[: -len(BOUNDARY) - 6] + b"\r\n" + note))


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize(
    "preamble", [b"\r\n", b"This is a multipart message.\r\n", f"-{BOUNDARY}\r\n--{BOUNDARY[:-1]}\r\n".encode()]
)
def test_what_stands_before_the_first_boundary_is_left_out(step, preamble):
    assert receive(request_of(preamble + form(b"a video"), step=step)) == b"a video"


def test_a_preamble_has_an_end():
    request = request_of(b"x" * 500_000 + b"\r\n" + form(b"a video"))
    with pytest.raises(TooLarge, match="65536 bytes beside the file"):
        receive(request)
    assert len(request.left) > 400


@pytest.mark.parametrize(
    ("request_args", "error"),
    [
        ({"body": b"{}", "content_type": "application/json"}, UnsupportedMedia),
        ({"body": b"{}", "content_type": None}, UnsupportedMedia),
        ({"body": b"{}", "content_type": "multipart/form-data"}, UnsupportedMedia),
        ({"body": b"no boundary in here"}, BadRequest),
        ({"body": form(b"abc", closed=False)}, BadRequest),
        ({"body": b""}, BadRequest),
        ({"body": form(b"abc", name="video")}, Unprocessable),
        ({"body": form(b"")}, Unprocessable),
        ({"body": form(b"abc", closed=False) + b"\r\n" + form(b"def")}, Unprocessable),
    ],
)
def test_forms_that_are_no_upload(request_args, error):
    with pytest.raises(error) as refusal:
        receive(request_of(**request_args))
    assert "file" in refusal.value.next_step or "form" in refusal.value.next_step


def test_an_upload_that_stalls_times_out():
    request = request_of(form(b"abc", closed=False))
    request.left.pop()
    with pytest.raises(RequestTimeout):
        receive(request, timeout_seconds=0.05)


def test_a_client_that_leaves_frees_its_slot_and_leaves_nothing(tmp_path):
    receiver = UploadReceiver(max_bytes=10_000, slots=1, timeout_seconds=5, folder=tmp_path)
    left = request_of(form(bytes(5000), closed=False), ending={"type": "http.disconnect"})

    async def run():
        with pytest.raises(ClientDisconnect):
            async with receiver.receive(left):
                pass
        async with receiver.receive(request_of(form(b"abc"))) as upload:
            assert not any(tmp_path.iterdir())  # it never had a name
            with pytest.raises(Overloaded) as refusal:
                async with receiver.receive(request_of(form(b"abc"))):
                    pass
            assert int(refusal.value.headers["Retry-After"]) >= 1
            assert upload.file.read() == b"abc"
        async with receiver.receive(request_of(form(b"def"))):
            pass

    asyncio.run(run())
    assert not any(tmp_path.iterdir())


# The route.


@pytest.fixture(scope="module")
def upload_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def client(clip_store, tiny_encoder, upload_folder):
    settings = load_settings(
        {
            "store": clip_store / "store",
            "allowed_hosts": "testserver",
            "upload_folder": upload_folder,
            "watch_seconds": 0,
        }
    )
    engine = Engine(
        tiny_encoder,
        lambda: StoreReader.open(settings.store),
        limits=QueryLimits.from_settings(settings),
        cache_entries=0,
    )
    with TestClient(create_app(settings, engine)) as made:
        yield made


def traces(*folders):
    """All files; SQLite's -wal and -shm come and go with each reader of the catalogue."""
    paths = [path for folder in folders for path in folder.rglob("*") if not path.name.endswith(("-wal", "-shm"))]
    files = [path for path in paths if not path.is_dir() or not (path / "catalogue.db").exists()]
    return sorted((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files)


def test_a_video_finds_its_captions_and_similar_videos(client, clip_store):
    content = (clip_store / "clips" / "clip_2.mp4").read_bytes()
    answer = client.post("/v1/search/video?k=4", files={"file": ("../../../etc/passwd", content)}).json()
    assert len(answer["captions"]) == len(answer["hits"]) == 4
    assert answer["upload"]["frames"] == 6
    for caption in answer["captions"]:
        assert 0 <= caption["moment"] <= answer["upload"]["duration_seconds"]
    similar = client.post("/v1/search/video?rerank=frozen&k=1", files={"file": ("x", content)}).json()
    assert similar["hits"][0]["title"] == "clip_2"


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_uploads_get_a_reason_and_leave_no_trace(client, clip_store, upload_folder, name):
    content, status = REFUSED[name]
    before = traces(clip_store, upload_folder)
    response = client.post("/v1/search/video", files={"file": ("video.mp4", content(), "video/mp4")})
    assert response.status_code == status
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert all(problem[field] for field in ("detail", "expected", "next_step"))
    assert traces(clip_store, upload_folder) == before
    assert client.get("/health/ready").status_code == 200


@pytest.mark.parametrize("query", ["k=0", "k=101", "rerank=best", "candidates=x", "offset=-1"])
def test_wrong_parameters_of_an_upload(client, query):
    assert client.post(f"/v1/search/video?{query}", files={"file": ("x", b"abc")}).status_code == 422


def test_real_recordings_upload(client, real_clips):
    clips = [path for path in sorted(real_clips.iterdir()) if path.suffix in (".mp4", ".mkv")]
    assert len(clips) == 15
    for path in clips:
        response = client.post("/v1/search/video?k=2", files={"file": (path.name, path.read_bytes())})
        assert response.status_code == 200, f"{path.name}: {response.text}"
        assert len(response.json()["captions"]) == 2


# Over a real socket.


@pytest.fixture(scope="module")
def server(start_server, clip_store, tiny_checkpoint, tmp_path_factory):
    uploads = tmp_path_factory.mktemp("server_uploads")
    made = start_server(
        *("--store", clip_store / "store", "--model", tiny_checkpoint, "--upload-folder", uploads),
        *("--upload-max-bytes", "4MiB", "--upload-slots", "1", "--upload-timeout-seconds", "3"),
    )
    made.uploads = uploads
    return made


def send_until_refused(port, head, pieces):
    """Send until the server says or does something; returns the bytes it took and its answer."""
    sent, answer = 0, b""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(head)
        connection.setblocking(False)
        try:
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    try:
                        count = connection.send(view)
                        sent, view = sent + count, view[count:]
                    except BlockingIOError:
                        time.sleep(0.001)
                    try:
                        answer += connection.recv(65536)
                    except BlockingIOError:
                        continue
                    raise ConnectionResetError  # it answered: stop sending, as curl does
        except (ConnectionResetError, BrokenPipeError):
            pass
        connection.settimeout(10)
        try:
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass
    return sent, answer


def gigabyte():
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="x.mp4"\r\n\r\n'.encode()
    yield head
    for _ in range(1024):
        yield bytes(MEBIBYTE)


def chunked(pieces):
    for piece in pieces:
        yield f"{len(piece):x}\r\n".encode() + piece + b"\r\n"


HEAD = (
    f"POST /v1/search/video HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
)


@pytest.mark.parametrize("declared", [False, True])
def test_a_gigabyte_is_refused_while_it_streams(server, declared):
    process = psutil.Process(server.process.pid)
    memory, written = process.memory_info().rss, process.io_counters().write_chars
    if declared:
        sent, answer = send_until_refused(
            server.port, (HEAD + f"Content-Length: {1024**3}\r\n\r\n").encode(), gigabyte()
        )
    else:
        sent, answer = send_until_refused(
            server.port, (HEAD + "Transfer-Encoding: chunked\r\n\r\n").encode(), chunked(gigabyte())
        )
    assert answer.startswith(b"HTTP/1.1 413 "), answer[:200]
    assert b'"next_step"' in answer
    # What was sent but not read is in the kernel's socket buffers, at most a few MiB on either side.
    assert sent < (0 if declared else 4 * MEBIBYTE) + 16 * MEBIBYTE
    assert process.io_counters().write_chars - written < (0 if declared else 4 * MEBIBYTE) + MEBIBYTE
    assert process.memory_info().rss - memory < 16 * MEBIBYTE
    assert not any(server.uploads.iterdir())
    assert httpx.get(server.url + "/health/ready").status_code == 200


def test_a_client_that_leaves_midway_frees_its_slot(server, clip_store):
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall((HEAD + f"Content-Length: {MEBIBYTE}\r\n\r\n").encode() + form(bytes(1000), closed=False))
        time.sleep(0.3)
        refused = upload_to(server, clip_store)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
    for _ in range(50):
        if (answer := upload_to(server, clip_store)).status_code == 200:
            break
        time.sleep(0.1)
    assert answer.status_code == 200
    assert not any(server.uploads.iterdir())


def test_an_upload_that_trickles_is_cut_off(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall((HEAD + f"Content-Length: {MEBIBYTE}\r\n\r\n").encode() + form(bytes(1000), closed=False))
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408 ")


def upload_to(server, clip_store):
    content = (clip_store / "clips" / "clip_1.mp4").read_bytes()
    return httpx.post(server.url + "/v1/search/video", files={"file": ("x.mp4", content)}, timeout=60)


def test_every_error_has_all_its_parts():
    for kind in ServiceError.__subclasses__():
        error = kind("what", expected="that", next_step="this")
        assert (error.detail, error.expected, error.next_step) == ("what", "that", "this")
        assert 400 <= kind.status < 600
        assert Path(kind.slug).name == kind.slug
