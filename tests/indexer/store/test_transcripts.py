"""Transcripts in the catalogue: kept with their videos, searched as words, and pointing to a moment."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from index_support import FakeEncoder, location_of, settings, video_of

from indexer.library import FoundByWords
from indexer.sources.transcripts import Cue
from indexer.store import merge, schema
from indexer.store.catalogue import Catalogue, CatalogueReader
from indexer.store.reader import StoreReader
from indexer.store.records import TranscriptRow
from indexer.store.verify import verify
from indexer.store.writer import StoreWriter

TALK = (
    (0.2, 0.6, "welcome to the aquarium"),
    (1.1, 1.4, "this octopus has three"),
    (1.5, 1.9, "hearts and blue blood"),
    (9.0, 9.5, "the end"),
)


def name(number: int) -> str:
    return location_of(number).video_id


def said(*cues: tuple[float, float, str], language: str = "en", origin: str = "file") -> TranscriptRow:
    made = tuple(Cue(start_seconds=start, end_seconds=end, text=text) for start, end, text in cues)
    return TranscriptRow(language=language, origin=origin, source="/a.srt", version="1", cues=made)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three videos of three segments of one second each; the first has a transcript."""
    with StoreWriter.open(tmp_path / "store", settings=settings()) as writer:
        writer.add_locations([location_of(number) for number in (1, 2, 3)])
        writer.add_videos([video_of(number, 3) for number in (1, 2, 3)])
        writer.set_transcripts({name(1): [said(*TALK)]})
        writer.publish(FakeEncoder())
    return tmp_path / "store"


def search(store: Path, text: str, **options: float) -> list[FoundByWords]:
    with StoreReader.open(store) as reader:
        return reader.search_words(text, 10, **options)


def test_what_is_said_is_found_with_its_time_and_its_segment(store: Path) -> None:
    (found,) = search(store, "blue blood")
    assert (found.video_id, found.kinds, found.passage) == (name(1), ("transcript",), (1.5, 1.9))
    assert [text for text, marked in found.snippet if marked] == ["blue", "blood"]
    segments = {number: (start, end) for number, start, end in found.segments}
    start, end = segments[found.segment_of_passage]
    assert start <= 1.5 < end


def test_a_sentence_over_two_cues_is_one_passage(store: Path) -> None:
    (found,) = search(store, "octopus three hearts")
    assert found.passage == (1.1, 1.9)
    assert found.coverage == pytest.approx(1)
    assert "".join(text for text, _ in found.snippet) == "this octopus has three hearts and blue blood"


def test_words_from_all_over_a_long_talk_are_no_match(store: Path) -> None:
    assert search(store, "welcome blood end", coverage=0.5) == []
    assert search(store, "welcome blood end")[0].coverage < 0.5


def test_cues_far_apart_are_no_passage(store: Path) -> None:
    with StoreWriter.open(store) as writer:
        writer.set_transcripts({name(2): [said((0, 1, "giant"), (9, 10, "squid"))]})
    assert search(store, "giant squid")[0].passage in {(0, 1), (9, 10)}


def test_another_transcript_is_not_continued(store: Path) -> None:
    rows = [said((0, 1, "giant")), said((1, 2, "squid"), language="de")]
    with StoreWriter.open(store) as writer:
        writer.set_transcripts({name(2): rows})
    assert search(store, "giant squid")[0].passage in {(0, 1), (1, 2)}


def test_a_passage_behind_the_last_segment_belongs_to_the_nearest(store: Path) -> None:
    with StoreWriter.open(store) as writer:
        writer.set_transcripts({name(2): [said((500, 501, "epilogue"))]})
    found = search(store, "epilogue")[0]
    assert found.segment_of_passage == found.segments[-1][0]


def test_replacing_and_removing_changes_what_is_found_and_keeps_the_rest(store: Path) -> None:
    with StoreWriter.open(store) as writer:
        writer.set_transcripts({name(1): [said((0, 1, "submarine"))]})
        assert search(store, "octopus") == []
        assert search(store, "submarine")[0].passage == (0, 1)
        writer.set_transcripts({name(1): [said((0, 1, "u-boot"), language="de")]})
        with StoreReader.open(store) as reader:
            assert [one.language for one in reader.transcripts(name(1))] == ["de", "en"]
            assert [cue.text for cue in reader.cues(name(1), "de")] == ["u-boot"]
            assert reader.cues(name(1), "fr") == reader.cues(name(2), "en") == []
        writer.set_transcripts({}, [(name(1), "en")])
        assert search(store, "submarine") == []
        assert search(store, "boot")[0].video_id == name(1)
        writer.remove_videos([name(1)])
        assert search(store, "boot") == []
        assert writer.catalogue.connection.execute("SELECT count(*) FROM cues").fetchone() == (0,)


def test_a_removed_transcript_without_cues_is_not_listed(store: Path) -> None:
    with StoreWriter.open(store) as writer:
        writer.set_transcripts({name(1): [said(origin="http")]})
    with StoreReader.open(store) as reader:
        assert reader.transcripts(name(1)) == []
    assert search(store, "octopus") == []


def test_editing_a_video_leaves_the_documents_of_its_cues_alone(store: Path) -> None:
    query = "SELECT document_id, text FROM documents WHERE kind = 'transcript' ORDER BY 1"
    with StoreWriter.open(store) as writer:
        before = writer.catalogue.connection.execute(query).fetchall()
        writer.edit_video(name(1), title="Octopus", tags=["sea"])
        assert writer.catalogue.connection.execute(query).fetchall() == before
        assert len(before) == len(TALK)


def test_one_word_all_over_a_long_talk_does_not_hide_other_videos(store: Path) -> None:
    cues = [(float(n), n + 0.5, f"dog {n}") for n in range(1000)]
    with StoreWriter.open(store) as writer:
        writer.set_transcripts({name(2): [said((0, 1, "a dog"))]})
        writer.set_transcripts({name(3): [said(*cues)]})
    assert {one.video_id for one in search(store, "dog")} == {name(2), name(3)}


def test_a_merged_store_has_the_transcripts(store: Path, tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path / "merged", settings=settings()) as writer:
        merge.merge(writer, [store])
        writer.publish(FakeEncoder())
    assert search(tmp_path / "merged", "octopus")[0].passage == (1.1, 1.4)


def test_verify_reports_transcripts_that_differ_from_the_published_ones(store: Path) -> None:
    assert verify(store).problems == []
    with closing(Catalogue.open(store / "catalogue.db")) as catalogue:
        catalogue.connection.execute("UPDATE cues SET text = 'other'")
    assert any("cues" in problem for problem in verify(store).problems)


def test_a_store_of_an_earlier_version_is_searched_without_transcripts(store: Path) -> None:
    with StoreWriter.open(store) as writer:
        writer.edit_video(name(2), title="lighthouse")
    with closing(Catalogue.open(store / "catalogue.db")) as catalogue:
        script = (
            "DROP TABLE cues; DROP TABLE transcripts; DROP TABLE recordings; DROP TABLE read_recordings;"
            " DELETE FROM documents WHERE kind = 'transcript';"
        )
        for column in ("transcript_id", "start_seconds", "end_seconds"):
            script += f"ALTER TABLE documents DROP COLUMN {column};"
        catalogue.connection.executescript(f"{script} PRAGMA user_version = {schema.WITH_TRANSCRIPTS - 1}")
    with StoreReader.open(store) as reader:
        assert [one.video_id for one in reader.search_words("lighthouse", 5)] == [name(2)]
        assert reader.transcripts(name(1)) == reader.cues(name(1), "en") == []
    with closing(CatalogueReader.open_readonly(store / "catalogue.db")) as catalogue:
        assert catalogue.transcript_sources(name(1)) == {}
    StoreWriter.open(store).close()
    assert search(store, "lighthouse")
