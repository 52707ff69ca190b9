"""Conditional requests and ranges of files (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import re
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.responses import FileResponse, Response

from service.errors import PreconditionFailed
from service.media.files import check_range

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request


def is_unmodified(request: Request, etag: str, modified: float | None = None) -> bool:
    """Whether the client holds this version already. ``modified`` counts seconds since 1970.

    ``If-None-Match`` decides alone where it is given; a date that cannot be read is ignored.
    """
    known = request.headers.get("if-none-match")
    if known is not None:
        tags = {tag.strip().removeprefix("W/") for tag in known.split(",")}
        return "*" in tags or etag in tags
    since = request.headers.get("if-modified-since")
    if since is None or modified is None:
        return False
    try:
        return int(modified) <= parsedate_to_datetime(since).timestamp()
    except (ValueError, OverflowError, TypeError):
        return False


def check_match(request: Request, etag: str) -> None:
    """Raise ``PreconditionFailed`` if the client wants other versions than this one (``If-Match``)."""
    wanted = request.headers.get("if-match")
    if wanted is not None and wanted.strip() != "*" and etag not in {tag.strip() for tag in wanted.split(",")}:
        raise PreconditionFailed(
            f"the version is {etag}, If-Match names {wanted[:200]}",
            expected="the version that is here",
            next_step="ask again without If-Match, and take the ETag of the answer",
        )


def not_modified(etag: str, headers: Mapping[str, str]) -> Response:
    """The answer to a client that holds this version already."""
    return Response(status_code=304, headers={**headers, "ETag": etag})


def file_answer(
    request: Request, path: Path, *, kind: str, etag: str, headers: Mapping[str, str], accel_redirect: str = ""
) -> Response:
    """A file, whole or in ranges, or 304. Raises ``RangeNotSatisfiable``, ``PreconditionFailed``, ``OSError``.

    With ``accel_redirect``, an internal location of the nginx in front, the answer only names the file below it: nginx
    replaces it by the file, and answers ranges and conditions itself.
    """
    status = path.stat()
    if accel_redirect:
        named = {"X-Accel-Redirect": accel_redirect + quote(str(path.absolute()))}
        return Response(media_type=kind, headers={**headers, **named})
    check_match(request, etag)
    if is_unmodified(request, etag, status.st_mtime):
        return not_modified(etag, {**headers, "Last-Modified": formatdate(status.st_mtime, usegmt=True)})
    asked = request.headers.get("range")
    if asked is not None and asked.partition("=")[0].strip().lower() != "bytes":
        # Ranges in other units are ignored; starlette would refuse them.
        request.scope["headers"] = [pair for pair in request.scope["headers"] if pair[0] != b"range"]
    elif "if-range" not in request.headers:
        check_range(asked, status.st_size)
    return FileResponse(path, media_type=kind, headers={**headers, "ETag": etag})


def attachment(name: str) -> str:
    """A ``Content-Disposition`` header (RFC 6266) that suggests a file name."""
    plain = re.sub(r"[^A-Za-z0-9 ._-]", "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
