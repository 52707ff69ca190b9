"""Receiving an upload: a multipart body is streamed into a file that has no name.

In: a request with one ``file`` part, and texts if a route accepts them. Out: that part's bytes as an open, anonymous
temporary file, which is gone when it is closed, also if this process is killed. The size is counted while it streams:
at the limit reading stops, the answer is 413 and the connection is closed. The client's file name is never used for
anything.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from service.errors import (
    BadRequest,
    Overloaded,
    RequestTimeout,
    ServiceError,
    TooLarge,
    Unprocessable,
    UnsupportedMedia,
)

FIELD = "file"
ENVELOPE_BYTES = 64 * 1024  # boundaries and part headers around the file
_CLOSE = {"Connection": "close"}  # the rest of the body is not read, so the connection cannot be used again
_HOW = f"send multipart/form-data with one part named `{FIELD}`, as `curl -F {FIELD}=@video.mp4` does"

_FILE: dict[str, Any] = {"type": "string", "format": "binary"}


@dataclass(frozen=True, kw_only=True)
class Upload:
    """The received bytes, read from the start; ``texts`` are the values of each text field that was sent."""

    file: IO[bytes]
    size_bytes: int
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)


class UploadReceiver:
    """Receives at most ``slots`` uploads at once, each of at most ``max_bytes`` within ``timeout_seconds``."""

    def __init__(self, *, max_bytes: int, slots: int, timeout_seconds: float, folder: Path | None) -> None:
        self.max_bytes = max_bytes
        self.slots = slots
        self.timeout_seconds = timeout_seconds
        self.folder = folder
        self._taken = 0

    @property
    def taken(self) -> int:
        """Uploads under way."""
        return self._taken

    @asynccontextmanager
    async def receive(
        self, request: Request, texts: Collection[str] = (), *, texts_bytes: int = ENVELOPE_BYTES
    ) -> AsyncIterator[Upload]:
        """The upload of a request; its slot is free again, and its bytes are gone, when the context ends.

        ``texts`` are the fields that may come with it; where there are any, others are refused. They, their headers
        and the boundaries have at most ``texts_bytes`` together.

        Raises ``Overloaded``, ``TooLarge``, ``UnsupportedMedia`` (not multipart), ``BadRequest`` (broken multipart),
        ``Unprocessable`` (no file, several, or empty) or ``RequestTimeout``.
        """
        self._check_size(request.headers.get("content-length"), texts_bytes)
        boundary = _boundary(request.headers.get("content-type"))
        self._take_slot()
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                part = await self._receive_into(file, request, boundary, texts, texts_bytes)
                yield Upload(file=file, size_bytes=part.size_bytes, texts=part.texts())
        finally:
            self._taken -= 1

    def _check_size(self, declared: str | None, texts_bytes: int) -> None:
        if declared is not None and declared.isdecimal() and int(declared) > self.max_bytes + texts_bytes:
            raise self._too_large(f"the upload has {declared} bytes")

    def _too_large(self, detail: str) -> TooLarge:
        return TooLarge(
            detail,
            expected=f"at most {self.max_bytes} bytes",
            next_step="upload a shorter or smaller video, or raise --upload-max-bytes",
            headers=_CLOSE,
        )

    def _take_slot(self) -> None:
        if self._taken >= self.slots:
            raise Overloaded(
                f"{self._taken} uploads are in progress already",
                expected=f"at most {self.slots} at once",
                next_step="try again after the seconds in Retry-After, or raise --upload-slots",
                retry_after_seconds=2,
            )
        self._taken += 1

    async def _receive_into(
        self, file: IO[bytes], request: Request, boundary: bytes, texts: Collection[str], texts_bytes: int
    ) -> _FilePart:
        part = _FilePart(names=frozenset(texts))
        received, preamble = 0, _Preamble(boundary)
        try:
            parser = MultipartParser(boundary, part.callbacks())  # type: ignore[arg-type]  # a subset of the callbacks
            async with asyncio.timeout(self.timeout_seconds):
                async for chunk in request.stream():
                    received += len(chunk)
                    parser.write(preamble.without(chunk))
                    pending = part.take()
                    if part.size_bytes > self.max_bytes:
                        raise self._too_large(f"the upload has more than {self.max_bytes} bytes")
                    # Whatever is not the file counts, empty parts and their headers too: a body may have no end.
                    if received - part.size_bytes > texts_bytes:
                        raise part.too_much(texts_bytes)
                    if pending:
                        await asyncio.to_thread(file.write, pending)
        except TimeoutError:
            raise RequestTimeout(
                f"the upload did not arrive within {self.timeout_seconds:g} seconds",
                expected="a steady stream of bytes",
                next_step="try again over a faster connection, or raise --upload-timeout-seconds",
                headers=_CLOSE,
            ) from None
        except FormParserError as error:
            raise BadRequest(f"broken multipart body: {error}", expected="a form", next_step=_HOW) from error
        part.check_complete()
        await asyncio.to_thread(file.flush)
        file.seek(0)
        return part


def _boundary(content_type: str | None) -> bytes:
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise UnsupportedMedia(
            f"an upload must be a form, got {content_type or 'no Content-Type'}",
            expected="multipart/form-data with a boundary",
            next_step=_HOW,
            headers=_CLOSE,
        )
    return options[b"boundary"]


class _Preamble:
    """Leaves out what stands before the first boundary (RFC 2046, section 5.1.1), which the parser does not know."""

    def __init__(self, boundary: bytes) -> None:
        self._opening = b"--" + boundary
        self._held: bytes | None = b""

    def without(self, chunk: bytes) -> bytes:
        """What the parser is to have of a chunk."""
        if self._held is None:
            return chunk
        self._held += chunk
        if self._opening.startswith(self._held[: len(self._opening)]):
            at = 0  # the usual case: no preamble
        else:
            at = self._held.find(b"\r\n" + self._opening) + 2
        if at == 1 or len(self._held) - at < len(self._opening):
            return b""  # it may be in the next chunk; the limit on bytes outside the file bounds what is held
        begun, self._held = self._held[at:], None
        return begun


@dataclass(kw_only=True)
class _FilePart:
    """What the multipart parser has seen so far. The part named ``file`` is kept until ``take``, texts to the end."""

    names: frozenset[str] = frozenset()
    size_bytes: int = 0
    _files: int = 0
    _ended: bool = False
    _in_file: bool = False
    _last_name: str = ""
    _texts: list[tuple[str, bytearray]] = field(default_factory=list)
    _pending: bytearray = field(default_factory=bytearray)
    _header: tuple[bytearray, bytearray] = field(default_factory=lambda: (bytearray(), bytearray()))

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._on_part_begin,
            "on_part_data": self._on_part_data,
            "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
            "on_header_end": self._on_header_end,
            "on_end": self._on_end,
        }

    def too_much(self, most_bytes: int) -> ServiceError:
        """The error for more than ``most_bytes`` outside the file."""
        if self._files == 0 and self._last_name and self._last_name not in self.names:
            return Unprocessable(
                f"the form has a part named {self._last_name[:80]!r}, and none named `{FIELD}` before it",
                expected=f"the file in a part named `{FIELD}`",
                next_step=_HOW,
                headers=_CLOSE,
            )
        return TooLarge(
            f"the form has more than {most_bytes} bytes beside the file",
            expected=f"at most {most_bytes} bytes of texts, headers and boundaries",
            next_step="shorten the texts",
            headers=_CLOSE,
        )

    def take(self) -> bytes:
        taken = bytes(self._pending)
        self._pending.clear()
        return taken

    def texts(self) -> dict[str, list[str]]:
        """The values of each text field. Raises ``Unprocessable`` for a field that is not taken here."""
        found: dict[str, list[str]] = {}
        for name, value in self._texts:
            if name not in self.names:
                known = ", ".join(sorted({FIELD, *self.names}))
                raise Unprocessable(
                    f"the form has a part named {name[:80]!r}", expected=f"{known}", next_step="leave the part out"
                )
            try:
                found.setdefault(name, []).append(value.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise BadRequest(
                    f"the field {name!r} is not UTF-8", expected="UTF-8", next_step="encode the form as UTF-8"
                ) from error
        return found

    def check_complete(self) -> None:
        if not self._ended:
            raise BadRequest("the multipart body ends too early", expected="a closing boundary", next_step=_HOW)
        if self._files != 1:
            raise Unprocessable(
                f"the form has {self._files} parts named `{FIELD}`", expected="exactly one", next_step=_HOW
            )
        if self.size_bytes == 0:
            raise Unprocessable("the uploaded file is empty", expected="a video", next_step="upload another file")

    def _on_part_begin(self) -> None:
        self._in_file = False

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self.size_bytes += end - start
            self._pending += data[start:end]
        elif self._texts:
            self._texts[-1][1].extend(data[start:end])

    def _on_header_end(self) -> None:
        header, value = (bytes(part) for part in self._header)
        for part in self._header:
            part.clear()
        if header.lower() == b"content-disposition":
            _, options = parse_options_header(value)
            name = options.get(b"name", b"").decode("utf-8", "replace")
            self._last_name = name
            self._in_file = name == FIELD
            self._files += self._in_file
            if not self._in_file and self.names:
                self._texts.append((name, bytearray()))

    def _on_end(self) -> None:
        self._ended = True


def upload_form(fields: dict[str, Any] | None = None, *, file: str = "A video.") -> dict[str, Any]:
    """The ``openapi_extra`` of a route that takes an upload as the part ``file``, and perhaps ``fields`` beside it.

    Args:
        file: What the upload is.
        fields: JSON schemas of the other parts, by name; a route that names none ignores what else is sent.
    """
    schema: dict[str, Any] = {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {**_FILE, "description": file}},
    }
    if fields is not None:
        schema["additionalProperties"] = False
        schema["properties"] |= fields
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
