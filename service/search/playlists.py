"""Hits as one file that other programs open: a playlist, an edit decision list, a page with pictures.

Nothing here reads a video or a store. All text from outside is escaped, or loses its control characters where the
format has no escape.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Literal

ListFormat = Literal["m3u", "edl", "html"]
MEDIA_TYPES: dict[ListFormat, str] = {
    "m3u": "audio/x-mpegurl; charset=utf-8",
    "edl": "text/plain; charset=utf-8",
    "html": "text/html; charset=utf-8",
}
SUFFIXES: dict[ListFormat, str] = {"m3u": ".m3u8", "edl": ".edl", "html": ".html"}
MOST_PICTURES = 200
"""Hits of a page with pictures; 200 of 320 pixels are about 3 MB."""

_RECORD_START_SECONDS = 3600  # where editors begin a timeline
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_STYLE = """
:root{color-scheme:light dark;font:16px/1.45 system-ui,sans-serif}
body{margin:2rem auto;padding:0 1rem;max-width:75rem}
h1{font-size:1.5rem;margin:0}
.quiet{opacity:.7;margin:.2rem 0 0}
ol{list-style:none;margin:1.5rem 0;padding:0;display:grid;gap:1.25rem;
  grid-template-columns:repeat(auto-fill,minmax(15rem,1fr))}
img,.none{display:block;width:100%;aspect-ratio:16/9;object-fit:contain;border-radius:.6rem;background:#8883}
h2{font-size:1rem;margin:.5rem 0 0;overflow-wrap:anywhere}
p{margin:.1rem 0}
mark{border-radius:.2rem;padding:0 .1em}
"""


@dataclass(frozen=True, kw_only=True)
class ListedMoment:
    """A part of a video. Times are seconds from its first frame.

    ``name`` is the name of the video's file. ``url`` opens the video, or the moment alone if ``is_cut``; None if nobody
    who reads the list could open it. ``snippet`` is the text with words of the query, in parts, each with whether it
    is such a word. ``picture`` is a JPEG.
    """

    title: str
    name: str
    url: str | None
    start_seconds: float
    end_seconds: float
    moment_seconds: float
    is_cut: bool = False
    snippet: Sequence[tuple[str, bool]] = ()
    picture: bytes | None = None


def clock(seconds: float) -> str:
    """``75.25`` is ``1:15.2``; hours only where there are any."""
    tenths = int(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    start = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{start}:{rest // 10:02d}.{rest % 10}"


def m3u_playlist(moments: Sequence[ListedMoment], name: str) -> str:
    """An extended M3U playlist in UTF-8.

    A whole video gets VLC's options for where to start and stop; other players start it at its beginning. Raises
    ``ValueError`` for a moment without ``url``.
    """
    lines = ["#EXTM3U", f"#PLAYLIST:{_line(name)}"]
    for moment in moments:
        if moment.url is None:
            raise ValueError(f"the playlist needs a place where {moment.title!r} can be played; its file is not here")
        seconds = moment.end_seconds - moment.start_seconds
        part = f"{clock(moment.start_seconds)}-{clock(moment.end_seconds)}"
        lines.append(f"#EXTINF:{seconds:.3f},{_line(moment.title)} {part}")
        if not moment.is_cut:
            lines.append(f"#EXTVLCOPT:start-time={moment.start_seconds:.3f}")
            lines.append(f"#EXTVLCOPT:stop-time={moment.end_seconds:.3f}")
        lines.append(moment.url)
    return "\n".join(lines) + "\n"


def edit_list(moments: Sequence[ListedMoment], name: str, frame_rate: int) -> str:
    """A CMX 3600 edit decision list: the moments one after the other, picture and sound, from 01:00:00:00 on.

    Timecodes count ``frame_rate`` frames a second, no frame dropped; set it to the rate of the editor's timeline. They
    are rounded to frames, and each moment has at least one. Editors find the files by their names.
    """
    lines = [f"TITLE: {_line(name)[:70]}", "FCM: NON-DROP FRAME", ""]
    record = _RECORD_START_SECONDS * frame_rate
    for number, moment in enumerate(moments, start=1):
        first = round(moment.start_seconds * frame_rate)
        end = max(first + 1, round(moment.end_seconds * frame_rate))
        places = (first, end, record, record + end - first)
        codes = " ".join(_timecode(place, frame_rate) for place in places)
        lines.append(f"{number:03d}  AX       AA/V  C        {codes}")
        lines.append(f"* FROM CLIP NAME: {_line(moment.name)}")
        record += end - first
    return "\n".join(lines) + "\n"


def picture_page(moments: Sequence[ListedMoment], name: str, made: datetime) -> str:
    """One HTML file that needs no other: a picture, the title and the time of each moment. No scripts."""
    items = "\n".join(_item(moment) for moment in moments) or "<li>Nothing was found.</li>"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(name)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(name)}</h1>
<p class="quiet">{len(moments)} {"moment" if len(moments) == 1 else "moments"} · {made:%Y-%m-%d}</p>
<ol>
{items}
</ol>
</body>
</html>
"""


def _item(moment: ListedMoment) -> str:
    if moment.picture is None:
        picture = '<span class="none"></span>'
    else:
        encoded = base64.b64encode(moment.picture).decode()
        picture = f'<img src="data:image/jpeg;base64,{encoded}" alt="" loading="lazy">'
    shown = f"{picture}<h2>{escape(moment.title)}</h2>"
    if moment.url is not None:
        shown = f'<a href="{escape(moment.url)}" rel="noreferrer">{shown}</a>'
    snippet = "".join(f"<mark>{escape(text)}</mark>" if match else escape(text) for text, match in moment.snippet)
    part = f"{clock(moment.start_seconds)} – {clock(moment.end_seconds)}, best at {clock(moment.moment_seconds)}"
    return f"<li>{shown}<p>{part}</p>" + (f"<p>{snippet}</p>" if snippet else "") + "</li>"


def _line(text: str) -> str:
    """Text without what would begin a new line or confuse a terminal."""
    return _CONTROL.sub(" ", text).strip()


def _timecode(frames: int, frame_rate: int) -> str:
    seconds, rest = divmod(frames, frame_rate)
    return f"{seconds // 3600 % 24:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{rest:02d}"
