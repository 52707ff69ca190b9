"""The main job end to end: generated clips, the shipped model, ``emcl index build``, ``emcl serve``, HTTP.

What the service finds is compared, query by query, with what offline evaluation ranks from the same files: the recall
over HTTP is the recall of ``emcl evaluate``, to the last hit.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from model.demo.corpus import write_corpus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CLIPS, CANDIDATES = 60, 25
CUTS = (1, 5, 10)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Held-out clips in ``clips/``, indexed by the command in ``store/``."""
    folder = tmp_path_factory.mktemp("e2e")
    listing = write_corpus(folder / "clips", split="test", count=CLIPS, workers=1)
    command = [sys.executable, "-W", "error", "-m", "service.cli", "index", "build", folder / "clips"]
    options = ["--store", folder / "store", "--captions", listing, "--model", "demo", "--workers", "1"]
    done = subprocess.run([*map(str, command), *map(str, options)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def server(corpus, start_server):
    return start_server("--store", corpus / "store", "--max-wait-ms", "5")


@pytest.fixture(scope="module")
def records(corpus):
    lines = (corpus / "clips" / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def offline(corpus):
    """Ranks, from 1, of each caption's video and of each video's best caption, for every way of ranking."""
    from model.data.manifest import read_manifest
    from model.encoder import load_encoder
    from model.evaluate import run
    from model.evaluate.metrics import ranks_of_matches

    encoder = load_encoder("demo", device="cpu")
    encoded = run.encode_corpus(encoder, read_manifest(corpus / "clips" / "captions.jsonl"))
    first = run.stage_one(encoder, encoded, frozen_map=True)
    owners = encoded.video_of_text_T
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    ranks = {}
    for how in ("frozen", "none", "emcl"):
        ranked = first
        if how != "frozen":
            scores = run.rerank(encoder, encoded, first, candidates=CANDIDATES, how=how)
            ranked = run.fill_behind(scores, first)
        by_video = np.maximum.reduceat(ranked.video_to_text_VT, starts, axis=1)
        # That function counts from 0; people, and positions in a list of hits here, count from 1.
        ranks[how] = 1 + ranks_of_matches(ranked.text_to_video_TV, owners), 1 + ranks_of_matches(by_video)
    return ranks


def recall(ranks):
    """Hits within each cut, as a count of queries."""
    return {cut: int(np.sum(np.asarray(ranks) <= cut)) for cut in CUTS}


def position(names, wanted):
    """Rank, from 1, of the first name that is wanted; beyond every cut if there is none."""
    return next((rank for rank, name in enumerate(names, start=1) if name in wanted), 10**6)


@pytest.mark.parametrize("how", ["frozen", "none", "emcl"])
def test_text_search_over_http_has_the_recall_of_offline_evaluation(server, records, offline, how):
    texts = [(text, record["video"]) for record in records for text in record["captions"]]
    found = []
    for start in range(0, len(texts), 40):
        body = {
            "texts": [text for text, _ in texts[start : start + 40]],
            "k": CANDIDATES,
            "candidates": CANDIDATES,
            "rerank": how,
            "fusion": "visual",
        }
        response = httpx.post(server.url + "/v1/search", json=body, timeout=120)
        assert response.status_code == 200, response.text
        found += response.json()["results"]
    ranks = [
        position([hit["title"] + ".mp4" for hit in answer["hits"]], {video})
        for answer, (_, video) in zip(found, texts, strict=True)
    ]
    expected = offline[how][0]
    assert recall(ranks) == recall(expected)
    within = np.asarray(expected) <= max(CUTS)
    np.testing.assert_array_equal(np.asarray(ranks)[within], np.asarray(expected)[within])


def test_uploads_over_http_have_the_recall_of_offline_evaluation(server, corpus, records, offline):
    def rank(record):
        content = (corpus / "clips" / record["video"]).read_bytes()
        response = httpx.post(
            server.url + f"/v1/search/video?k={CANDIDATES}&candidates={CANDIDATES}",
            files={"file": ("clip.mp4", content)},
            timeout=120,
        )
        assert response.status_code == 200, response.text
        answer = response.json()
        # As the metric does: of several captions of a video the best counts, so others count once for each video.
        videos = list(dict.fromkeys(caption["video_id"] for caption in answer["captions"]))
        own = next(hit["video_id"] for hit in answer["hits"] if hit["title"] + ".mp4" == record["video"])
        return position(videos, {own})

    with ThreadPoolExecutor(2) as two_at_once:
        ranks = list(two_at_once.map(rank, records))
    assert recall(ranks) == recall(offline["emcl"][1])


def test_the_model_finds_what_it_is_asked_for(offline):
    for how, (text_ranks, video_ranks) in offline.items():
        assert recall(text_ranks)[10] > len(text_ranks) * 0.5, how
        assert recall(video_ranks)[10] > len(video_ranks) * 0.5, how


def test_the_command_line_finds_what_http_finds(server, corpus, records):
    text = records[0]["captions"][0]
    command = [sys.executable, "-m", "service.cli", "search", text, "--store", str(corpus / "store"), "--json"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    by_command = json.loads(printed)["hits"]
    by_http = httpx.post(server.url + "/v1/search", json={"text": text}).json()["hits"]
    assert [hit["video_id"] for hit in by_command] == [hit["video_id"] for hit in by_http]
    assert [hit["score"] for hit in by_command] == pytest.approx([hit["score"] for hit in by_http], abs=1e-5)
