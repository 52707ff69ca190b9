"""Hits as files of other programs: what a player, an editor and a browser read of them, also of hostile titles."""

import base64
from datetime import UTC, datetime
from html.parser import HTMLParser

import opentimelineio as otio
import pytest

from service.search.playlists import ListedMoment, clock, edit_list, m3u_playlist, picture_page

HOSTILE = 'a\n#EXTINF:0,"><script>alert(1)</script>\u2028\x1b[31m'
RATE = 25


def moment(**changes):
    usual = {
        "title": "lake",
        "name": "lake.mp4",
        "url": "file:///videos/lake.mp4",
        "start_seconds": 2.0,
        "end_seconds": 4.4,
        "moment_seconds": 3.2,
    }
    return ListedMoment(**{**usual, **changes})


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00.0"), (75.25, "1:15.2"), (3599.99, "59:59.9"), (3600, "1:00:00.0")]
)
def test_times_are_shown_as_a_clock(seconds, shown):
    assert clock(seconds) == shown


def test_a_playlist_starts_whole_videos_at_their_moment_and_clips_at_their_beginning():
    cut = moment(title="sea", url="http://127.0.0.1/v1/videos/a/clip?from=1&to=2", is_cut=True)
    lines = m3u_playlist([moment(), cut], "a dog").splitlines()
    assert lines == [
        "#EXTM3U",
        "#PLAYLIST:a dog",
        "#EXTINF:2.400,lake 0:02.0-0:04.4",
        "#EXTVLCOPT:start-time=2.000",
        "#EXTVLCOPT:stop-time=4.400",
        "file:///videos/lake.mp4",
        "#EXTINF:2.400,sea 0:02.0-0:04.4",
        "http://127.0.0.1/v1/videos/a/clip?from=1&to=2",
    ]


def test_no_title_adds_a_line_to_a_playlist_or_an_edit_list():
    hostile = moment(title=HOSTILE, name=HOSTILE)
    usual = moment()
    assert m3u_playlist([hostile], HOSTILE).count("\n") == m3u_playlist([usual], "x").count("\n")
    assert edit_list([hostile], HOSTILE, RATE).count("\n") == edit_list([usual], "x", RATE).count("\n")
    assert not set(m3u_playlist([hostile], HOSTILE) + edit_list([hostile], HOSTILE, RATE)) & set("\x1b\u2028\r")


def test_a_playlist_names_the_video_that_is_not_here():
    with pytest.raises(ValueError, match="'lake'"):
        m3u_playlist([moment(url=None)], "a dog")


@pytest.mark.parametrize("rate", [24, 25, 30, 60])
def test_an_editor_reads_the_moments_one_after_the_other(rate):
    """Read by OpenTimelineIO's adapter for CMX 3600."""
    moments = [moment(), moment(name="sea.mkv", start_seconds=4000.0, end_seconds=4000.001)]
    timeline = otio.adapters.read_from_string(edit_list(moments, "a dog", rate), "cmx_3600", rate=rate)
    assert timeline.name == "a dog"
    first, second = timeline.video_tracks()[0]
    assert (first.name, second.name) == ("lake.mp4", "sea.mkv")
    assert first.source_range.start_time == otio.opentime.RationalTime(2 * rate, rate)
    assert first.source_range.duration.value == round(4.4 * rate) - 2 * rate
    assert second.source_range.start_time == otio.opentime.RationalTime(4000 * rate, rate)
    assert second.source_range.duration.value == 1, "a moment has a frame, however short it is"
    assert "01:00:00:00 01:00:02:" in edit_list(moments, "a dog", rate), "the timeline begins at the first hour"


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words += data


def test_a_page_shows_pictures_and_marked_words_and_runs_nothing():
    shown = moment(title=HOSTILE, picture=b"JPEG", snippet=[("a <b>big</b> ", False), ("dog", True)])
    page = Page(picture_page([shown, moment(url=None)], HOSTILE, datetime(2026, 5, 4, tzinfo=UTC)))
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert (page.tags.count("li"), page.tags.count("img"), page.tags.count("a"), page.tags.count("mark")) == (
        2,
        1,
        1,
        1,
    )
    assert ("src", f"data:image/jpeg;base64,{base64.b64encode(b'JPEG').decode()}") in page.attributes
    assert HOSTILE in page.words
    assert "a <b>big</b> dog" in page.words
    assert "2 moments · 2026-05-04" in page.words
    assert "Nothing was found." in picture_page([], "a dog", datetime(2026, 5, 4, tzinfo=UTC))
