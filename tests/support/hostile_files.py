"""Hostile files that hold no video, hide one, or point at one that is not theirs to show."""

from __future__ import annotations

import gzip
import io
import random
import struct
import tarfile
import wave
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass

from hostile_clips import bases, jpeg
from hostile_containers import FTYP, block, box, cluster, element, full, matroska, movie, other_track, quicktime, track


@dataclass(frozen=True, kw_only=True)
class Bait:
    """What playlists point at: files that must not be opened, and an address that must not be asked."""

    folder: str
    url: str


def others(seed: int) -> Iterator[tuple[str, bytes]]:
    """Media that are no moving pictures: sound, subtitles, attachments, covers."""
    yield "a wave file", _wave()
    yield "subtitles in mkv", matroska([other_track(1, 17, b"S_TEXT/UTF8")], [cluster(0, block(b"hello"))])
    yield "subtitles in mov", quicktime(b"\0\5hello", handler=b"text", codec=b"text")
    yield "sound in mkv", matroska([other_track(1, 2, b"A_PCM/INT/LIT")], [cluster(0, block(bytes(100)))])
    yield "srt", b"1\n00:00:00,000 --> 00:00:09,000\nhello\n"
    yield "webvtt", b"WEBVTT\n\n00:00.000 --> 00:09.000\nhello\n"
    yield "ass", b"[Script Info]\nScriptType: v4.00+\n[Events]\nDialogue: 0,0:00:00.00,0:00:09.00,,,,,,,hello\n"
    attachment = element(
        0x61A7, element(0x466E, b"../../x.ttf"), element(0x4660, b"font/ttf"), element(0x465C, bytes(999))
    )
    yield "an attachment alone", matroska([], [], others=element(0x1941A469, attachment))
    picture = element(0x61A7, element(0x466E, b"cover.jpg"), element(0x4660, b"image/jpeg"), element(0x465C, jpeg()))
    yield "a cover alone", matroska([], [], others=element(0x1941A469, picture))
    cover = b"APIC" + struct.pack(">IH", len(jpeg()) + 14, 0) + b"\0image/jpeg\0\3\0" + jpeg()
    yield "mp3 with a cover", b"ID3\3\0\0" + _synchsafe(len(cover)) + cover + (b"\xff\xfb\x90\x64" + bytes(413)) * 20


def _attached(name: bytes, kind: bytes, content: bytes) -> bytes:
    file = element(0x61A7, element(0x466E, name), element(0x4660, kind), element(0x465C, content))
    return matroska([], [], others=element(0x1941A469, file))


def _synchsafe(value: int) -> bytes:
    return bytes(value >> shift & 0x7F for shift in (21, 14, 7, 0))


def _wave() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(4000))
    return file.getvalue()


def pointers(bait: Bait) -> Iterator[tuple[str, bytes]]:
    """Playlists, manifests and movies that point at a file of the server, or at an address in its network."""
    file = f"{bait.folder}/secret.mp4"
    targets = {
        "path": file,
        "file url": f"file://{file}",
        "http": f"{bait.url}/secret.mp4",
        "subfile": f"subfile,,start,0,end,0,,:{file}",
        "concat": f"concat:{file}|{file}",
    }
    for name, target in targets.items():
        yield f"hls {name}", f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n".encode()
        yield f"concat script {name}", f"ffconcat version 1.0\nfile '{target}'\n".encode()
        yield f"dash {name}", _dash(target)
    for name, target in (("path", file), ("http", f"{bait.url}/secret.mp4")):
        key = f'#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n#EXT-X-MAP:URI="{target}"\n'
        yield f"hls key {name}", f"#EXTM3U\n{key}#EXTINF:9,\n{target}\n".encode()
        yield f"asx {name}", f'<asx version="3.0"><entry><ref href="{target}"/></entry></asx>'.encode()
        yield f"smil {name}", f'<smil><body><video src="{target}"/></body></smil>'.encode()
        yield f"pls {name}", f"[playlist]\nFile1={target}\nNumberOfEntries=1\n".encode()
        yield f"svg {name}", f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{target}"/></svg>'.encode()
        yield f"xml entity {name}", f'<!DOCTYPE MPD [<!ENTITY x SYSTEM "{target}">]><MPD>&x;</MPD>'.encode()
        outside = full(b"url ", target.encode() + b"\0")
        yield f"mov data reference {name}", FTYP + movie([track(sizes=(999,), offsets=(0,), reference=outside)])
        link = box(b"rdrf", struct.pack(">I4sI", 0, b"url ", len(target) + 1), target.encode() + b"\0")
        yield f"mov reference movie {name}", FTYP + box(b"moov", box(b"rmra", box(b"rmda", link)))
    alias = full(b"alis", bytes(150) + struct.pack(">HH", 2, len(file)) + file.encode())
    yield "mov alias", FTYP + movie([track(sizes=(999,), offsets=(0,), reference=alias)])
    sdp = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n"
    sdp += "a=rtpmap:96 H264/90000\n"
    yield "sdp", sdp.encode()
    yield "reference movie", f"[Reference]\nRef1={bait.url}/secret.mp4\n".encode()
    yield "rtsp text", f"RTSPtext\nrtsp://{bait.url.removeprefix('http://')}/\n".encode()
    yield "hls in a png", b"\x89PNG\r\n\x1a\n" + f"#EXTM3U\n#EXTINF:9,\n{file}\n".encode()
    yield "hls in an mp4", FTYP + f"\n#EXTM3U\n#EXTINF:9,\n{file}\n".encode()
    yield "hls behind an id3 tag", b"ID3\3\0\0" + bytes(4) + f"#EXTM3U\n#EXTINF:9,\n{file}\n".encode()


def _dash(target: str) -> bytes:
    head = '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    body = 'mediaPresentationDuration="PT2S"><Period><AdaptationSet mimeType="video/mp4">'
    body += f'<Representation id="1" bandwidth="1"><BaseURL>{target}</BaseURL>'
    return f"{head}{body}</Representation></AdaptationSet></Period></MPD>".encode()


def strangers(seed: int) -> Iterator[tuple[str, bytes]]:
    """No media at all."""
    from PIL import Image

    rng = random.Random(seed)
    yield "one byte", b"\0"
    yield "0xff", b"\xff" * 10_000
    yield "zeros", bytes(10_000)
    yield "random", rng.randbytes(20_000)
    yield "text", "naïve text\n".encode() * 500
    yield "json", b'{"file": "../../etc/passwd"}'
    yield "html", b"<!doctype html><script>alert(1)</script>"
    yield "pickle", b"cos\nsystem\n(S'touch /tmp/hostile-pickle'\ntR."
    yield "python", b"#!/usr/bin/env python3\nimport os\nos.abort()\n"
    yield "elf", b"\x7fELF\2\1\1" + bytes(500)
    yield "pdf", b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n"
    yield "sqlite", b"SQLite format 3\0" + bytes(500)
    yield "gzip of a video", gzip.compress(bases()["mp4"], mtime=0)
    yield "gzip bomb", gzip.compress(bytes(20 << 20), mtime=0)
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "ICO"):
        file = io.BytesIO()
        Image.new("RGB", (32, 32), (200, 30, 60)).save(file, kind)
        yield f"picture {kind.lower()}", file.getvalue()
    yield "zip of a video", _zip("../../etc/passwd", bases()["mp4"])
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("/etc/passwd"))
    yield "tar", packed.getvalue()


def polyglots() -> Iterator[tuple[str, bytes]]:
    """A video to one reader, something else to another."""
    video = bases()["mp4"]
    yield "mp4 with a zip behind", video + _zip("x", b"y")
    yield "mp4 with html in a box", box(b"free", b"<script>alert(1)</script>") + video
    yield "mp4 behind html", b"<html><!--" + video
    yield "mp4 behind a pickle", b"cos\nsystem\n(S'true'\ntR." + video
    yield "mkv behind an mp4", video + bases()["mkv"]
    yield "gif with a script behind", bases()["gif"] + b"<script>alert(1)</script>"
    yield "mp4 called avi", b"RIFF" + struct.pack("<I", len(video)) + b"AVI " + video


def _zip(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), content)
    return file.getvalue()
