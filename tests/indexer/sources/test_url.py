"""URLs: fetched only where allowed, retried where that helps, and reported where it does not."""

from __future__ import annotations

import builtins
import io
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from index_support import FakeEncoder, make_clip
from source_support import Served, index, serving, videos_of, write_shard
from typer.testing import CliRunner

from indexer.cli import app
from indexer.errors import SourceError, StoreError
from indexer.locations import protocol_of
from indexer.sources import download_buffer
from indexer.sources import url as sources_url
from indexer.sources.discover import PackedSource
from indexer.sources.download_buffer import DownloadBuffer
from indexer.sources.url import RemoteFiles, check_url
from indexer.store.verify import verify

HTTP = frozenset({"http"})
PAD_BYTES = 6_000_000  # half of it is more than what aiohttp reads ahead, and loses when a connection breaks


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("clips")
    return [make_clip(folder / f"{number}.mp4", number, seconds=0.25).read_bytes() for number in range(4)]


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_url, "FIRST_PAUSE_SECONDS", 0.001)


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def body_requests(served: Served) -> list[str | None]:
    return [wanted for method, wanted in served.requests if method == "GET"]


# What may be fetched.


@pytest.mark.parametrize(
    ("text", "protocol"),
    [("s3://b/a", "s3"), ("HTTPS://h/a", "https"), ("a/b", None), ("/a://b", None), ("C:/a", None), ("://", None)],
)
def test_a_url_has_a_protocol(text: str, protocol: str | None) -> None:
    assert protocol_of(text) == protocol


def test_nothing_is_fetched_that_was_not_allowed(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"protocols allowed are none; add --allow-protocol http"):
        index(tmp_path / "s", "http://127.0.0.1:9/a.mp4")
    with pytest.raises(SourceError, match=r"protocols allowed are http, s3; add --allow-protocol https"):
        check_url("https://host/a.mp4", {"s3", "http"})
    with pytest.raises(SourceError, match="chains file systems"):
        check_url("simplecache::http://host/a.mp4", {"simplecache", "http"})


def test_secrets_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(SourceError) as raised:
        check_url("https://me:secret@host/a.mp4", {"https"})
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["ftp://me:secret@host/a.mp4", "sftp://secret@host/a.mp4", "s3://secret:me@b/a@b.mp4", "abfs://a:secret@b/c"]
)
def test_secrets_in_any_url_are_refused_and_not_repeated(url: str) -> None:
    for allowed in ({str(protocol_of(url))}, {"https"}):
        with pytest.raises(SourceError, match="name or password") as raised:
            check_url(url, allowed)
        assert "secret" not in str(raised.value)


@pytest.mark.parametrize("url", ["s3://bucket/a@b.mp4", "file:///me@home/a.mp4", "abfs://container@account/a.mp4"])
def test_an_at_sign_is_no_secret_everywhere(url: str) -> None:
    check_url(url, {str(protocol_of(url))})


def test_names_of_one_file_system_are_one_but_http_and_https_are_two() -> None:
    for protocol, allowed in (("gs", "gcs"), ("gcs", "gs"), ("s3", "s3a"), ("s3a", "s3"), ("file", "local")):
        check_url(f"{protocol}://bucket/a.mp4", {allowed})
    for protocol, allowed in (("http", "https"), ("https", "http"), ("gs", "s3")):
        with pytest.raises(SourceError, match=f"add --allow-protocol {protocol}"):
            check_url(f"{protocol}://bucket/a.mp4", {allowed})


def test_a_listing_may_name_its_file_system_otherwise(clips: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(clips[0])
    report = index(tmp_path / "s", f"local://{tmp_path}/in/", protocols=frozenset({"local"}))
    assert (report.indexed, report.failed) == (1, [])
    assert videos_of(tmp_path / "s")["a"].paths == (f"file://{tmp_path}/in/a.mp4",)


@pytest.mark.parametrize("protocol", ["ftp", "zip"])
def test_a_file_system_that_wants_more_than_a_url_is_an_error(protocol: str) -> None:
    message = rf"^{protocol}:// cannot be read by a URL alone \(.*\); copy its files here and give their paths"
    with RemoteFiles({protocol}, 1) as remote, pytest.raises(SourceError, match=message):
        remote.check(f"{protocol}://host/a.mp4")


@pytest.mark.parametrize(("protocol", "module", "extra"), [("s3", "s3fs", "s3"), ("gs", "gcsfs", "gs")])
def test_a_missing_package_is_named_with_its_extra(
    protocol: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object, **more: object) -> object:
        if name.partition(".")[0] == module:
            raise ImportError(f"no {module}")
        return real(name, *rest, **more)

    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with (
        RemoteFiles({protocol}, 1) as remote,
        pytest.raises(SourceError, match=rf"pip install 'emcl-search\[{extra}\]'"),
    ):
        remote.check(f"{protocol}://bucket/a.mp4")


def test_a_protocol_that_nobody_knows_is_an_error() -> None:
    with RemoteFiles({"nonsense"}, 1) as remote, pytest.raises(SourceError, match="nonsense"):
        remote.check("nonsense://a/b.mp4")


def test_the_command_refuses_before_a_model_is_loaded(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["build", "s3://bucket/a.mp4", "--store", str(tmp_path / "s"), "--model", "none"])
    assert isinstance(result.exception, SourceError)
    assert not (tmp_path / "s").exists()


# Folders and patterns.


def test_folders_and_patterns_of_a_file_system(
    clips: list[bytes], tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    write_shard(tmp_path / "x.tar", {"3.mp4": clips[3]})
    memory.pipe({"/b/0.mp4": clips[0], "/b/deep/1.mp4": clips[1], "/b/notes.txt": b"x"})
    memory.pipe("/b/x.tar", (tmp_path / "x.tar").read_bytes())
    allowed = frozenset({"memory"})
    assert index(tmp_path / "all", "memory://b", protocols=allowed).indexed == 3
    assert set(videos_of(tmp_path / "all")) == {"0", "1", "3"}
    assert videos_of(tmp_path / "all")["3"].paths == ("memory:///b/x.tar!3.mp4",)
    assert index(tmp_path / "some", "memory://b/*.mp4", protocols=allowed).indexed == 1
    encoder = FakeEncoder()
    again = index(tmp_path / "all", "memory://b", encoder=encoder, protocols=allowed)
    assert (again.complete, again.indexed, encoder.encoded_segments) == (True, 0, 0)
    memory.pipe("/b/0.mp4", clips[2])
    assert index(tmp_path / "all", "memory://b", protocols=allowed).indexed == 1


def test_local_files_can_be_named_by_url_too(clips: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(clips[0])
    report = index(tmp_path / "s", f"file://{tmp_path}/a.mp4", protocols=frozenset({"file"}))
    assert (report.indexed, report.failed) == (1, [])


# A real HTTP server.


def test_videos_and_shards_come_over_http_and_are_not_fetched_twice(clips: list[bytes], tmp_path: Path) -> None:
    for number in range(2):
        write_shard(tmp_path / f"s-{number}.tar", {f"{number}.mp4": clips[number], f"{number}.txt": f"text {number}"})
    files = {f"/s-{n}.tar": Served(content=(tmp_path / f"s-{n}.tar").read_bytes()) for n in range(2)}
    files["/c.mp4?v=1"] = Served(content=clips[2])
    with serving(files) as url:
        names = (f"{url}/s-{{0..1}}.tar", f"{url}/c.mp4?v=1")
        report = index(tmp_path / "s", *names, protocols=HTTP, keep_media=True)
        assert (report.complete, report.found, report.indexed, report.captions) == (True, 3, 3, 2)
        assert [len(body_requests(served)) for served in files.values()] == [1, 1, 1]
        again = index(tmp_path / "s", *names, protocols=HTTP)
        assert again.manifest == report.manifest
        assert [len(body_requests(served)) for served in files.values()] == [1, 1, 1], "nothing was downloaded again"
        files["/c.mp4?v=1"].etag = '"2"'
        index(tmp_path / "s", *names, protocols=HTTP)
        assert [len(body_requests(served)) for served in files.values()] == [1, 1, 2]
    videos = videos_of(tmp_path / "s")
    assert set(videos) == {"0", "1", "c"}
    assert f"{url}/s-1.tar!1.mp4" in videos["1"].paths
    assert verify(tmp_path / "s").problems == []


def test_without_a_version_a_url_is_read_again_each_time(clips: list[bytes], tmp_path: Path) -> None:
    files = {"/a.mp4": Served(content=clips[0], etag=None)}
    with serving(files) as url:
        for _ in range(2):
            assert index(tmp_path / "s", f"{url}/a.mp4", protocols=HTTP).complete
    assert len(body_requests(files["/a.mp4"])) == 2
    assert len(videos_of(tmp_path / "s")) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_an_answer_that_breaks_off_is_read_on_where_it_ended(clips: list[bytes], tmp_path: Path, ranges: bool) -> None:
    pad = {"pad.bin": bytes(PAD_BYTES)}
    shard = write_shard(tmp_path / "a.tar", {"0.mp4": clips[0], **pad, "1.mp4": clips[1]}).read_bytes()
    served = Served(content=shard, cut_after=[PAD_BYTES // 2, PAD_BYTES // 2], ranges=ranges)
    with serving({"/a.tar": served}) as url:
        report = index(tmp_path / "s", f"{url}/a.tar", protocols=HTTP)
    assert (report.failed, report.indexed) == ([], 2)
    first, *further = body_requests(served)
    assert first is None
    assert all(wanted is not None for wanted in further)
    assert 1 <= len(further) <= 3


def test_what_always_breaks_off_is_a_reason_and_stops_nothing(clips: list[bytes], tmp_path: Path) -> None:
    pad = {"pad.bin": bytes(PAD_BYTES)}
    shard = write_shard(tmp_path / "a.tar", {"0.mp4": clips[0], **pad, "1.mp4": clips[1]}).read_bytes()
    files = {
        "/a.tar": Served(content=shard, cut_after=[PAD_BYTES // 2] * 99, ranges=False),
        "/good.mp4": Served(content=clips[3]),
        "/busy.mp4": Served(content=clips[2], status=[503, 503]),
        "/broken.mp4": Served(content=clips[2], status=[500] * 99),
        "/secret.mp4": Served(content=clips[2], status=[403] * 99),
        "/text.mp4": Served(content=b"this is no video"),
        "/unsized.mp4": Served(content=clips[1], length=False),
    }
    with serving(files) as url:
        report = index(tmp_path / "s", *(f"{url}{name}" for name in (*files, "/missing.mp4")), protocols=HTTP)
        assert index(tmp_path / "s", f"{url}/missing.mp4", protocols=HTTP).manifest == report.manifest
    reasons = {path.removeprefix(url): reason for path, reason in report.failed}
    assert report.indexed == 4, reasons
    assert set(reasons) == {"/a.tar", "/broken.mp4", "/secret.mp4", "/missing.mp4", "/text.mp4"}
    assert reasons["/a.tar"].startswith("reading stopped at byte")
    assert "the server answered 500" in reasons["/broken.mp4"]
    assert "the server answered 403" in reasons["/secret.mp4"]
    assert len(body_requests(files["/secret.mp4"])) == 1, "what is forbidden is not asked for again"
    assert len(body_requests(files["/broken.mp4"])) == sources_url.TRIES
    assert "404" in reasons["/missing.mp4"]
    assert reasons["/text.mp4"].startswith("text.mp4 is not a video")
    assert verify(tmp_path / "s").problems == []


def test_a_server_that_says_nothing_is_given_up(
    clips: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_url, "TRIES", 2)
    files = {"/slow.mp4": Served(content=clips[0], pause_seconds=1.5), "/good.mp4": Served(content=clips[1])}
    with serving(files) as url:
        report = index(tmp_path / "s", *(f"{url}{n}" for n in files), protocols=HTTP, fetch_timeout_seconds=0.5)
    ((path, reason),) = report.failed
    assert (path, report.indexed) == (f"{url}/slow.mp4", 1)
    assert "reading stopped at byte 0" in reason
    assert len(body_requests(files["/slow.mp4"])) == 2


def test_a_server_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Trickle(io.BytesIO):
        def read(self, _: int | None = -1) -> bytes:
            time.sleep(0.05)
            return super().read(1)

    monkeypatch.setattr(RemoteFiles, "open_at", lambda *_: Trickle(bytes(500)))
    with RemoteFiles({"memory"}, 0.2) as remote, pytest.raises(SourceError, match="bytes came in 0 s"):
        remote.open("memory://a.mp4", 500).read()


def test_the_time_that_nobody_reads_is_not_the_servers(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/a.mp4", bytes(500))
    with RemoteFiles({"memory"}, 0.5) as remote:
        stream = remote.open("memory://a.mp4", 500)
        time.sleep(0.8)
        assert stream.read() == bytes(500)


def many(clip: bytes) -> dict[str, Served]:
    return {f"/{number:02d}.mp4": Served(content=clip, pause_seconds=0.05) for number in range(40)}


def test_what_waits_is_not_fetched_when_the_run_has_ended(clips: list[bytes], tmp_path: Path) -> None:
    files = many(clips[0])
    with serving(files) as url, RemoteFiles(HTTP, 5) as remote:
        sources = [PackedSource(name=f"{url}{name}", key=name) for name in files]
        with DownloadBuffer(tmp_path, remote, {}, {}, lambda _: False) as staged:
            locations = staged.download(sources, [])
            next(locations)
            locations.close()  # as Ctrl-C does
    assert sum(bool(served.requests) for served in files.values()) < 20


def test_what_waits_is_not_fetched_when_the_disk_is_full(
    clips: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise download_buffer.no_copy(OSError(28, "No space left on device"))

    monkeypatch.setattr(download_buffer, "append", full)
    files = many(clips[0])
    with serving(files) as url, pytest.raises(StoreError, match="No space left"):
        index(tmp_path / "s", *(f"{url}{name}" for name in files), protocols=HTTP)
    assert sum(bool(served.requests) for served in files.values()) < 20


@pytest.mark.parametrize("location", ["\r\nURI: https://127.0.0.1:9/a.mp4", "ht\ttps://127.0.0.1:9/a.mp4"])
def test_a_redirection_that_is_said_otherwise_is_refused_too(tmp_path: Path, location: str) -> None:
    with serving({"/away.mp4": Served(content=b"", location=location)}) as url:
        report = index(tmp_path / "s", f"{url}/away.mp4", protocols=HTTP)
    ((_, reason),) = report.failed
    assert "redirects to https://, which is not allowed" in reason


def test_a_redirection_to_another_protocol_is_refused(clips: list[bytes], tmp_path: Path) -> None:
    files = {
        "/away.mp4": Served(content=b"", location="https://127.0.0.1:9/a.mp4"),
        "/good.mp4": Served(content=clips[0]),
    }
    files["/here.mp4"] = Served(content=b"", location="/good.mp4")
    with serving(files) as url:
        report = index(tmp_path / "s", f"{url}/away.mp4", f"{url}/here.mp4", protocols=HTTP)
    ((path, reason),) = report.failed
    assert path == f"{url}/away.mp4"
    assert "redirects to https://, which is not allowed" in reason
    assert report.indexed == 1


def test_the_service_says_that_such_media_is_not_local(clips: list[bytes], tmp_path: Path) -> None:
    from service.errors import Gone
    from service.media.files import find_file

    shard = write_shard(tmp_path / "a.tar", {"0.mp4": clips[0]})
    index(tmp_path / "s", shard)
    (video,) = videos_of(tmp_path / "s").values()
    with pytest.raises(Gone, match="its media is not local") as raised:
        find_file(video)
    assert "--keep-media" in raised.value.next_step
    index(tmp_path / "s", shard, keep_media=True)
    (video,) = videos_of(tmp_path / "s").values()
    assert find_file(video).read_bytes() == clips[0]
