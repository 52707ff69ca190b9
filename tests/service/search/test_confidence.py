"""Answers say how well their hits fit: true matches above the line, nonsense and absent things below it."""

import json
import sys

import pytest
from service_support import assert_problem, serving

from indexer.store.confidence import LINE
from model.encoder import load_encoder
from service.cli import main

NONSENSE = ("qwertyuiop zxcvbnm", "xkcdq wvbnt")
ABSENT = ("a chef flips a pancake in a kitchen", "two dogs run along a beach")


@pytest.fixture(scope="module")
def library(tmp_path_factory, validation_folder):
    """Ten clips of the demo's corpus, indexed with the demo model: the folder of the store, and their captions."""
    folder = tmp_path_factory.mktemp("confidence")
    listing = validation_folder / "captions.jsonl"
    before, sys.argv = sys.argv, [
        "emcl", "index", "build", str(validation_folder), "--store", str(folder / "store"), "--model", "demo",
        "--workers", "1", "--captions", str(listing),
    ]  # fmt: skip
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = before
    assert not ended.value.code
    return folder, [json.loads(line)["captions"][0] for line in listing.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def demo(library, tmp_path_factory):
    """A client of a service over it."""
    with serving(library[0], load_encoder("demo", device="cpu"), tmp_path_factory.mktemp("service")) as client:
        yield client


def ask(client, **what):
    answer = client.post("/v1/search", json={"fusion": "visual", **what})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_hits_with_words_of_the_query_fit_whatever_the_pictures_say(demo, library):
    text = library[1][0]
    answer = ask(demo, text=text, fusion="auto", min_confidence=1)
    assert answer["hits"]
    assert all(hit["snippet"] for hit in answer["hits"])
    assert not answer["nothing_fits"]


def test_true_matches_end_above_the_line_nonsense_and_absent_things_below(demo, library):
    for caption in library[1]:
        answer = ask(demo, text=caption, k=1)
        assert answer["hits"][0]["confidence"] >= LINE, caption
        assert not answer["nothing_fits"]
    for text in (*NONSENSE, *ABSENT):
        answer = ask(demo, text=text, k=10)
        assert answer["nothing_fits"], text
        assert len(answer["hits"]) == 10
        assert all(0 <= hit["confidence"] < LINE for hit in answer["hits"])
    assert demo.get("/v1/index").json()["confidence_line"] == LINE


@pytest.mark.parametrize("rerank", ["emcl", "none", "frozen"])
def test_confidence_is_the_same_however_hits_are_ranked(demo, library, rerank):
    def by_video(**how):
        return {hit["video_id"]: hit["confidence"] for hit in ask(demo, text=library[1][0], **how)["hits"]}

    assert by_video(rerank=rerank) == by_video()


def test_hits_below_a_confidence_are_left_out(demo, library):
    text = library[1][0]
    everything = ask(demo, text=text)["hits"]
    middle = sorted(hit["confidence"] for hit in everything)[5]
    some = ask(demo, text=text, min_confidence=middle)
    assert [hit["video_id"] for hit in some["hits"]] == [
        hit["video_id"] for hit in everything if hit["confidence"] >= middle
    ]
    none = ask(demo, text=NONSENSE[0], min_confidence=LINE)
    assert none["hits"] == []
    assert none["nothing_fits"]
    many = ask(demo, texts=[text, NONSENSE[0]], min_confidence=LINE)["results"]
    assert [bool(answer["hits"]) for answer in many] == [True, False]


def test_likeness_to_a_video_has_no_confidence(demo, library):
    video_id = ask(demo, text=library[1][0], k=1)["hits"][0]["video_id"]
    alike = ask(demo, video_id=video_id)
    assert {hit["confidence"] for hit in alike["hits"]} == {None}
    assert not alike["nothing_fits"]
    wrong = demo.post("/v1/search", json={"video_id": video_id, "min_confidence": 0.5})
    assert_problem(wrong, 422, mentions="min_confidence")


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_a_confidence_is_from_0_to_1(demo, value):
    assert_problem(demo.post("/v1/search", json={"text": "a", "min_confidence": value}), 422, mentions="0 to 1")


def test_an_index_of_an_earlier_version_knows_none(library, demo, tmp_path, monkeypatch):
    from indexer.store import reader

    monkeypatch.setattr(reader.confidence, "CONFIDENCE", "of no version")
    with serving(library[0], load_encoder("demo", device="cpu"), tmp_path) as client:
        answer = ask(client, text="a red star")
        assert {hit["confidence"] for hit in answer["hits"]} == {None}
        assert not answer["nothing_fits"]
        assert client.get("/v1/index").json()["confidence_line"] is None
        wrong = client.post("/v1/search", json={"text": "a", "min_confidence": 0.5})
        assert_problem(wrong, 409, mentions="emcl index rebuild")


def test_the_command_draws_the_line(library, monkeypatch, capsys):
    def run(*arguments):
        command = ["emcl", "search", *arguments, "--store", str(library[0] / "store")]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code, said.out.splitlines(), said.err

    code, lines, err = run(NONSENSE[0], "-k", "3")
    assert not code
    assert "nothing fits well" in err
    assert lines[1].startswith("-- nothing fits well -")
    assert len(lines) == 5
    code, lines, err = run(library[1][0])
    assert "nothing fits well" not in err
    rule = next(place for place, line in enumerate(lines) if line.startswith("-- these fit less well -"))
    assert float(lines[rule - 1].split()[3]) >= LINE
    assert all(float(line.split()[3]) < LINE for line in lines[rule + 1 :])
    code, lines, _ = run(NONSENSE[0], "--min-confidence", str(LINE))
    assert (code or 0, lines) == (0, ["nothing found"])
    code, _, err = run("--video", "x.mp4", "--min-confidence", "0.5")
    assert code == 2
