"""Each form of EMCL over rows end to end: a store, ``emcl serve``, HTTP, in both directions.

The recall over HTTP is that of offline evaluation under the correction of the store's generation, to the last hit.
"""

import json
import shutil
import subprocess
import sys

import httpx
import numpy as np
import pytest

from indexer.store import bank
from indexer.store.reader import StoreReader
from indexer.store.writer import StoreWriter
from model.data.manifest import read_manifest
from model.demo.captions import captions_of
from model.demo.corpus import write_corpus
from model.demo.scene import make_scene
from model.emcl.correction import CorrectionSettings
from model.emcl.paired import PairedBases
from model.encoder import load_encoder
from model.evaluate.corpus import encode_corpus
from model.evaluate.metrics import ranks_of_matches
from model.evaluate.rank import fill_behind, rank_corrected

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CLIPS, CANDIDATES = 40, 15
CUTS = (1, 5, 10)
MODES = ("off", "hub", "paired", "paired+hub")


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("demo", device="cpu")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Held-out clips in ``clips/``, indexed by the command in ``store/``."""
    folder = tmp_path_factory.mktemp("modes")
    listing = write_corpus(folder / "clips", split="test", count=CLIPS, workers=1)
    command = [sys.executable, "-m", "service.cli", "index", "build", folder / "clips", "--store", folder / "store"]
    options = ["--captions", listing, "--model", "demo", "--workers", "1"]
    done = subprocess.run([*map(str, command), *map(str, options)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module", params=MODES)
def served(request, plain, encoder, start_server, tmp_path_factory):
    """The store with a mode, served; and the correction of its generation."""
    mode, path = request.param, tmp_path_factory.mktemp("mode") / "store"
    shutil.copytree(plain / "store", path)
    texts = [captions_of(make_scene(0, "train", number), 0, number)[0] for number in range(400)]
    rows = encoder.encode_texts(texts)
    if "hub" in mode:
        bank.write_bank_texts(path, rows, "400 texts")
    noise = np.random.default_rng(4).normal(size=rows.shape).astype(np.float32)
    paired = PairedBases.fit(rows, rows + 0.3 * np.abs(rows).mean() * noise, bases=16) if "paired" in mode else None
    bank.write_settings(path, CorrectionSettings(paired=paired, hub_strength=0.5 if "hub" in mode else 0.0))
    with StoreWriter.open(path) as writer:
        writer.publish(encoder)
    with StoreReader.open(path) as reader:
        correction = reader.correction
    assert correction.mode == mode
    server = start_server("--store", str(path), "--max-wait-ms", "5")
    yield server, correction
    server.stop()


@pytest.fixture
def offline(served, plain, encoder):
    """Ranks, from 1, of each caption's video and of each video's best caption."""
    corpus = encode_corpus(encoder, read_manifest(plain / "clips" / "captions.jsonl"))
    reranked, first = rank_corrected(encoder, corpus, served[1], candidates=CANDIDATES)
    ranked, owners = fill_behind(reranked, first), corpus.video_of_text_T
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    by_video = np.maximum.reduceat(ranked.video_to_text_VT, starts, axis=1)
    return 1 + ranks_of_matches(ranked.text_to_video_TV, owners), 1 + ranks_of_matches(by_video)


def recall(ranks):
    """Hits within each cut, as a count of queries."""
    return {cut: int(np.sum(np.asarray(ranks) <= cut)) for cut in CUTS}


def place_of(names, wanted):
    return next((rank for rank, name in enumerate(names, start=1) if name == wanted), 10**6)


def test_recall_over_http_is_that_of_offline_evaluation_in_both_directions(served, plain, offline):
    server, _ = served
    lines = (plain / "clips" / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    texts = [(text, record["video"]) for record in records for text in record["captions"]]
    body = {"texts": [text for text, _ in texts], "k": CANDIDATES, "candidates": CANDIDATES}
    found = []
    for start in range(0, len(texts), 40):
        part = {**body, "texts": body["texts"][start : start + 40]}
        response = httpx.post(server.url + "/v1/search", json=part, timeout=120)
        assert response.status_code == 200, response.text
        found += response.json()["results"]
    ranks = [
        place_of([hit["title"] + ".mp4" for hit in answer["hits"]], video)
        for answer, (_, video) in zip(found, texts, strict=True)
    ]
    assert recall(ranks) == recall(offline[0])
    within = offline[0] <= max(CUTS)
    np.testing.assert_array_equal(np.asarray(ranks)[within], offline[0][within])

    back = []
    for record in records:
        content = (plain / "clips" / record["video"]).read_bytes()
        response = httpx.post(
            server.url + f"/v1/search/video?k={CANDIDATES}&candidates={CANDIDATES}",
            files={"file": ("clip.mp4", content)},
            timeout=120,
        )
        assert response.status_code == 200, response.text
        answer = response.json()
        videos = list(dict.fromkeys(caption["video_id"] for caption in answer["captions"]))
        own = next(hit["video_id"] for hit in answer["hits"] if hit["title"] + ".mp4" == record["video"])
        back.append(place_of(videos, own))
    assert recall(back) == recall(offline[1])
