"""Words: how texts are divided, which documents the catalogue keeps of a video, and which of them a query finds."""

from __future__ import annotations

import sqlite3
import unicodedata
from contextlib import closing
from pathlib import Path

import pytest
from index_support import FakeEncoder, fill, location_of, settings, video_of

from indexer.errors import StoreError
from indexer.library import FoundByWords, Wanted
from indexer.store import schema
from indexer.store.catalogue import Catalogue
from indexer.store.reader import StoreReader
from indexer.store.verify import verify
from indexer.store.words import words_of
from indexer.store.writer import StoreWriter

Captions = dict[int, list[str]]


def store_of(path: Path, captions: Captions, *, segments: int = 1) -> Path:
    """A published store of videos with these captions."""
    encoder = FakeEncoder()
    with StoreWriter.open(path, settings=settings()) as writer:
        writer.add_locations([location_of(number) for number in captions])
        writer.add_videos([video_of(number, segments) for number in captions])
        caption(writer, captions)
        writer.publish(encoder)
    return path


def caption(writer: StoreWriter, captions: Captions) -> None:
    texts = [(name(number), text) for number, own in captions.items() for text in own]
    if texts:
        writer.add_captions(texts, FakeEncoder().encode_texts([text for _, text in texts]))


def name(number: int) -> str:
    return location_of(number).video_id


def found(store: Path, text: str, count: int = 10) -> list[int]:
    """Numbers of the videos that a text finds, best first."""
    with StoreReader.open(store) as reader:
        return [int(one.video_id, 16) for one in reader.search_words(text, count)]


def first(store: Path, text: str) -> FoundByWords:
    with StoreReader.open(store) as reader:
        return reader.search_words(text, 1)[0]


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    captions = {
        1: ["a white cockatoo looks into the camera"],
        2: ["a brown dog runs on a beach"],
        3: ["a dog sleeps"],
        4: ["Straße in Zürich, schöner Tag"],
        5: ["一只白色的鹦鹉"],
    }
    return store_of(tmp_path / "store", captions)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Zürich", unicodedata.normalize("NFD", "Zürich")),
        ("zürich", "ZURICH"),
        ("Straße", "STRASSE"),
        ("ｃｏｃｋａｔｏｏ", "Cockatoo"),
        ("ﬁsh", "fish"),
        ("white_cockatoo-2", "white cockatoo 2"),
    ],
)
def test_forms_of_one_text_have_the_same_words(one: str, other: str) -> None:
    assert words_of(one) == words_of(other) != []


def test_characters_of_scripts_without_spaces_are_words() -> None:
    assert words_of("白い猫 cat") == ["白", "い", "猫", "cat"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a white cockatoo", [1]),
        ("COCKATOO", [1]),
        ("brown dog", [2, 3]),
        ("dog sleeps", [3, 2]),
        ("zurich strasse", [4]),
        ("鹦鹉", [5]),
        ("cocka", [1]),  # the last word may be unfinished
        ("white cocka", [1]),
        ("cocka white", [1]),  # only the last: what is before it is no word that any document has
        ("submarine", []),
        ("a the", [1, 2, 3]),
    ],
)
def test_a_query_finds_documents_with_its_words(animals: Path, text: str, expected: list[int]) -> None:
    assert sorted(found(animals, text)) == sorted(expected) if text == "a the" else found(animals, text) == expected


@pytest.mark.parametrize(
    "text",
    [
        '"', '""', "*", "dog*", "dog AND", "NOT dog", "dog OR (", "NEAR(dog, 2)", "words:dog", "^dog", "dog'--",
        "'; DROP TABLE documents; --", "dog\0cat", "\u200b", "-dog", "{dog}", "dog + ", "\ud7ff", "𝔡𝔬𝔤", "%", "_",
    ],
)  # fmt: skip
def test_no_text_is_taken_for_query_syntax(animals: Path, text: str) -> None:
    assert set(found(animals, text)) == ({2, 3} if "dog" in words_of(text) else set())
    with closing(Catalogue.open(animals / "catalogue.db")) as catalogue:
        assert len(documents(catalogue)) == 10  # a name and a caption of each


def test_a_text_of_a_hundred_thousand_characters_costs_no_more_than_its_first_words(animals: Path) -> None:
    long = "dog " + " ".join(f"word{n}" for n in range(20_000))
    assert set(found(animals, long)) == {2, 3}


def test_the_snippet_shows_the_words_in_the_text_as_it_was_written(animals: Path) -> None:
    assert first(animals, "strasse zurich").snippet == (
        ("Straße", True), (" in ", False), ("Zürich", True), (", schöner Tag", False),
    )  # fmt: skip
    assert [text for text, marked in first(animals, "鹦鹉").snippet if marked] == ["鹦", "鹉"]
    assert [text for text, marked in first(animals, "a white cockatoo").snippet if marked] == ["white", "cockatoo"]


def test_a_long_text_is_cut_around_its_first_word(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s", {1: ["far " * 100 + "needle " + "away " * 100]})
    parts = first(store, "needle").snippet
    assert ("needle", True) in parts
    assert sum(len(text) for text, _ in parts) <= 162
    assert parts[0][0].startswith("…")
    assert parts[-1][0].endswith("…")


def test_titles_tags_file_names_and_captions_are_documents_and_count_together(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s", {1: ["waves and sand"], 2: ["holiday"], 17: []})
    with StoreWriter.open(store) as writer:
        writer.add_titles({name(1): "Holiday in Crete"})
        writer.add_tags({name(1): ["beach"]})
    assert found(store, "holiday beach") == [1, 2]
    assert first(store, "holiday beach waves").kinds == ("title", "tag", "caption")
    assert first(store, "holiday beach waves").coverage == pytest.approx(1)
    assert first(store, "17").kinds == ("name",)  # /clips/17.mp4


def test_a_change_is_found_at_once_and_what_was_there_is_not(animals: Path) -> None:
    with StoreReader.open(animals) as reader:
        assert not reader.search_words("submarine", 5)
        with StoreWriter.open(animals) as writer:
            writer.edit_video(name(2), title="submarine")
            after = reader.refreshed()
            assert after is not None
            with after:
                assert [one.video_id for one in after.search_words("submarine", 5)] == [name(2)]
            writer.edit_video(name(2), title="balloon")
            (number,) = writer.catalogue.caption_ids([(name(1), "a white cockatoo looks into the camera")])
            assert number is not None
            writer.remove_captions([number])
            writer.remove_videos([name(3)])
    assert found(animals, "submarine") == found(animals, "cockatoo") == []
    assert found(animals, "dog") == [2]
    assert found(animals, "balloon") == [2]


def test_documents_follow_a_rolled_back_transaction(animals: Path) -> None:
    with closing(Catalogue.open(animals / "catalogue.db")) as catalogue:
        before = documents(catalogue)
        with pytest.raises(sqlite3.IntegrityError):
            retitle_two(catalogue)
        assert documents(catalogue) == before


def retitle_two(catalogue: Catalogue) -> None:
    with catalogue.transaction():
        catalogue.set_title(name(1), "never")
        catalogue.refresh_words()
        catalogue.set_title(name(99), "of no video")


def documents(catalogue: Catalogue) -> list[tuple[object, ...]]:
    query = "SELECT video_id, kind, text, words, length FROM documents ORDER BY 1, 2, 3"
    return catalogue.connection.execute(query).fetchall()


def test_the_full_text_index_agrees_with_the_documents_after_any_changes(animals: Path) -> None:
    with StoreWriter.open(animals) as writer:
        fill(writer, [20, 21, 22])
        writer.edit_video(name(20), title="one", tags=["two", "three"])
        writer.edit_video(name(20), title="", tags=[])
        writer.remove_videos([name(21), name(1)])
        database = writer.catalogue.connection
        database.execute("INSERT INTO documents_fts (documents_fts, rank) VALUES ('integrity-check', 1)")
        counts = database.execute("SELECT documents, words FROM document_counts").fetchone()
        assert counts == database.execute("SELECT count(*), sum(length) FROM documents").fetchone()


def test_videos_that_a_view_does_not_serve_are_not_found(animals: Path) -> None:
    with StoreReader.open(animals) as before:
        with StoreWriter.open(animals) as writer:
            fill(writer, [30])
            writer.edit_video(name(30), title="submarine")
        assert before.search_words("submarine", 5) == []
    assert found(animals, "submarine") == [30]


def test_a_filter_does_not_lose_what_many_other_documents_hide(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s", {1: ["a dog"], **{n: [f"dog {n}"] for n in range(2, 700)}})
    with StoreReader.open(store) as reader:
        only = Wanted(video_ids=(name(1),))
        assert [one.video_id for one in reader.search_words("dog", 5, only)] == [name(1)]
        assert len(reader.search_words("dog", 20)) == 20
        assert len(reader.search_words("dog", 500)) == 500


def test_a_catalogue_of_an_earlier_format_gets_its_documents_when_it_is_written_to(animals: Path) -> None:
    with closing(Catalogue.open(animals / "catalogue.db")) as catalogue:
        expected = documents(catalogue)
        for table in (
            "documents_fts",
            "documents",
            "document_counts",
            "cues",
            "transcripts",
            "recordings",
            "read_recordings",
        ):
            catalogue.connection.execute(f"DROP TABLE {table}")
        catalogue.connection.execute(f"PRAGMA user_version = {schema.WITH_WORDS - 1}")
    with StoreReader.open(animals) as reader:
        assert not reader.has_words
        assert reader.search_words("cockatoo", 5) == []
        StoreWriter.open(animals).close()
        assert reader.has_words
        assert len(reader.search_words("cockatoo", 5)) == 1
    with closing(Catalogue.open(animals / "catalogue.db")) as catalogue:
        assert documents(catalogue) == expected


def test_a_copy_without_its_catalogue_is_searched_in_what_was_published(animals: Path) -> None:
    (animals / "catalogue.db").unlink()
    assert found(animals, "cockatoo") == [1]


def test_verify_reports_documents_that_differ_from_the_published_ones(animals: Path) -> None:
    with closing(sqlite3.connect(animals / "catalogue.db")) as database, database:
        database.execute("UPDATE documents SET text = 'other' WHERE video_id = ?", (name(1),))
    assert any("documents" in problem for problem in verify(animals).problems)


def test_a_python_whose_sqlite_has_no_full_text_search_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "has_full_text_search", lambda connection: False)
    with pytest.raises(StoreError, match=r"SQLite \S+ was built without FTS5.*python\.org"):
        Catalogue.open(tmp_path / "catalogue.db", create=True)


def test_words_that_stand_far_apart_count_less(tmp_path: Path) -> None:
    scattered = "a big dot drifts left and turns pink, with a red square beside a triangle"
    store = store_of(tmp_path / "s", {1: [scattered], 2: ["a red triangle is big"], 3: ["the big, red triangle"]})
    with StoreReader.open(store) as reader:
        matches = reader.search_words("a big red triangle", 5)
        assert {one.video_id for one in matches[:2]} == {name(2), name(3)}
        assert [one.coverage for one in matches] == pytest.approx([1.0, 1.0, 3 / 10])  # 3 words lie within 10
        assert len(reader.search_words("a big red triangle", 5, coverage=0.5)) == 2
