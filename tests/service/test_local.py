"""The library in a process, without a server: five lines from a folder to hits."""

import pytest
from fastapi.testclient import TestClient
from service_support import make_app

from service.local import Results, open_library


@pytest.fixture
def folder(tmp_path, clips):
    (tmp_path / "videos").mkdir()
    for number, content in enumerate(clips[:3]):
        (tmp_path / "videos" / f"{number}.mp4").write_bytes(content)
    (tmp_path / "videos" / "0.txt").write_text("a <b>first</b> clip\n")
    return tmp_path


def test_a_folder_is_indexed_searched_extended_and_thinned(folder, tiny_checkpoint, clips):
    with open_library(folder / "store", model=str(tiny_checkpoint)) as library:
        assert len(library) == 0
        assert library.videos() == []
        with pytest.raises(ValueError, match="is empty; add videos"):
            library.search("a circle")
        report = library.index([folder / "videos"])
        assert (report.indexed, report.failed) == (3, [])
        assert len(library) == 3
        hits = library.search("a red circle", k=2)
        assert len(hits) == 2
        assert hits[0].score >= hits[1].score
        assert hits[0].path.parent == folder / "videos"
        assert hits[0].start_seconds <= hits[0].moment_seconds <= hits[0].end_seconds
        (folder / "more.mp4").write_bytes(clips[3])
        added = library.add(folder / "more.mp4", title="More", tags=["new"], captions=["one more"])
        assert [hit.video_id for hit in library.search("anything", tags=["new"])] == [added]
        assert library.search("anything", tags=["new"])[0].title == "More"
        assert library.add(folder / "more.mp4") == added
        assert added not in {hit.video_id for hit in library.similar(added)}
        found = library.captions_for(folder / "videos" / "0.mp4")
        assert {match.text for match in found} == {"a <b>first</b> clip", "one more"}
        library.remove(added)
        assert len(library) == 3
        assert (folder / "more.mp4").exists()
        with pytest.raises(ValueError, match="holds no video"):
            library.remove(added)
    with open_library(folder / "store") as again:  # which names its model itself
        assert [hit.video_id for hit in again.search("a red circle", k=2)] == [hit.video_id for hit in hits]


def test_it_answers_as_the_service_does(clip_store, tiny_encoder, tiny_checkpoint, tmp_path):
    with TestClient(make_app(clip_store, tiny_encoder, tmp_path)) as client:
        expected = client.post("/v1/search", json={"text": "a red circle", "k": 4}).json()["hits"]
    with open_library(clip_store / "store", model=str(tiny_checkpoint)) as library:
        found = library.search("a red circle", k=4)
    assert [hit.video_id for hit in found] == [hit["video_id"] for hit in expected]
    assert [hit.score for hit in found] == pytest.approx([hit["score"] for hit in expected], abs=1e-5)


def test_hits_show_themselves_in_a_notebook(folder, tiny_checkpoint):
    with open_library(folder / "store", model=str(tiny_checkpoint)) as library:
        library.index([folder / "videos"])
        hits = library.search("a red circle", k=2)
        shown = hits._repr_html_()
        assert shown.count("data:image/jpeg;base64,/9j/") == 2
        assert isinstance(hits[:1], Results)
        (folder / "videos" / f"{hits[0].title}.mp4").unlink()
        assert hits[0].thumbnail() is None
        assert hits._repr_html_().count("data:image/jpeg") == 1
        captions = library.captions_for(folder / "videos" / f"{hits[1].title}.mp4")
        assert "&lt;b&gt;first" in captions._repr_html_(), "texts are escaped"


def test_files_that_are_no_videos_and_folders_that_are_no_libraries(folder, tiny_checkpoint, tmp_path):
    (folder / "notes.mp4").write_text("not a video")
    with open_library(folder / "store", model=str(tiny_checkpoint)) as library:
        with pytest.raises(ValueError, match="cannot be added"):
            library.add(folder / "notes.mp4")
        with pytest.raises(ValueError, match="there is no file or folder"):
            library.index([folder / "missing"])
