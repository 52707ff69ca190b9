"""When, where and with what a video was recorded: what devices write is read, and what cannot be is not believed."""

from datetime import UTC, datetime, timedelta

import av
import numpy as np
import pytest

from model.video.recording import MOST_CHARS, UNKNOWN_RECORDING, Recording, recording_of
from model.video.sampling import probe


def seconds(*date: int) -> float:
    return datetime(*date, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"creation_time": "2024-05-01T16:30:00.000000Z"}, seconds(2024, 5, 1, 16, 30)),
        ({"com.apple.quicktime.creationdate": "2024-05-01T18:30:00+0200"}, seconds(2024, 5, 1, 16, 30)),
        (
            {"creation_time": "2024-05-02T09:00:00Z", "com.apple.quicktime.creationdate": "2024-05-01T18:30:00+0200"},
            seconds(2024, 5, 1, 16, 30),  # when it was recorded, not when it was exported
        ),
        ({"DATE": "2019-12-31"}, seconds(2019, 12, 31)),
        ({"date": "20191231"}, seconds(2019, 12, 31)),
        ({"date": "2019/12/31"}, seconds(2019, 12, 31)),
        ({"creation_time": "2024-05-01 16:30:00"}, seconds(2024, 5, 1, 16, 30)),
        # clocks that were never set, and text that is not a date
        ({"creation_time": "1904-01-01T00:00:00Z"}, None),
        ({"creation_time": "1970-01-01T00:00:00Z"}, None),
        ({"creation_time": "0000-00-00T00:00:00Z"}, None),
        ({"creation_time": "9999-12-31T23:59:59-23:59"}, None),
        ({"creation_time": "yesterday"}, None),
        ({"date": "2019"}, None),
        ({"creation_time": "1" * 100_000}, None),
        ({"creation_time": "1904-01-01T00:00:00Z", "date": "2019-12-31"}, seconds(2019, 12, 31)),
        ({}, None),
    ],
)
def test_times_of_recording(metadata, expected):
    assert recording_of(metadata).recorded_seconds == expected


def test_a_time_in_the_future_is_not_believed():
    now = datetime.now(UTC)
    near, far = now + timedelta(hours=12), now + timedelta(days=3)
    assert recording_of({"creation_time": near.isoformat()}).recorded_seconds == pytest.approx(near.timestamp())
    assert recording_of({"creation_time": far.isoformat()}).recorded_seconds is None


@pytest.mark.parametrize(
    ("metadata", "camera"),
    [
        ({"com.apple.quicktime.make": "Apple", "com.apple.quicktime.model": "iPhone 15"}, "Apple iPhone 15"),
        ({"com.android.manufacturer": "Google", "com.android.model": "Pixel 8"}, "Google Pixel 8"),
        ({"make": "Canon", "model": "Canon EOS R5"}, "Canon EOS R5"),
        ({"model": "  GoPro\x00\x1b[31m  HERO11\u202e "}, "GoPro [31m HERO11"),
        ({"model": "x" * 10_000}, "x" * MOST_CHARS),
        ({"make": "", "model": "\n"}, None),
    ],
)
def test_makes_and_models(metadata, camera):
    assert recording_of(metadata).camera == camera


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("+52.5200+013.4050+034.000/", (52.52, 13.405)),
        ("-33.8688+151.2093/", (-33.8688, 151.2093)),
        ("+95.0000+013.4050/", (None, None)),
        ("52.52, 13.4", (None, None)),
        ("", (None, None)),
    ],
)
def test_places(text, place):
    for key in ("com.apple.quicktime.location.ISO6709", "location"):
        found = recording_of({key: text})
        assert (found.latitude, found.longitude) == place


def test_the_stream_is_asked_where_the_container_says_nothing():
    assert recording_of({}, {"creation_time": "2024-05-01T00:00:00Z"}).recorded_seconds == seconds(2024, 5, 1)


@pytest.mark.parametrize(
    "recording",
    [
        UNKNOWN_RECORDING,
        Recording(recorded_seconds=1714581000.25, camera="Apple iPhone 15", latitude=-3.5, longitude=151.2093),
        Recording(recorded_seconds=1714581000.0),
        Recording(latitude=0.0, longitude=-0.25),
    ],
)
def test_another_process_reads_the_same(recording):
    assert recording_of(recording.to_metadata()) == recording


def test_a_file_says_when_it_was_recorded(tmp_path):
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w", options={"movflags": "use_metadata_tags"}) as container:
        container.metadata.update(
            {
                "creation_time": "2024-05-01T16:30:00Z",
                "make": "Canon",
                "model": "EOS R5",
                "location": "+52.5200+013.4050/",
            }
        )
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 64
        for _ in range(10):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    found = probe(path).recording
    assert found == Recording(
        recorded_seconds=seconds(2024, 5, 1, 16, 30), camera="Canon EOS R5", latitude=52.52, longitude=13.405
    )
