"""The queries that the documentation shows have their answer in the demo library, at the first place."""

import json
import re
from contextlib import closing
from pathlib import Path

import pytest

from indexer.store.reader import StoreReader
from model.encoder import load_encoder
from service.demo import SHOWCASE, examples, prepare
from service.search.engine import Engine
from service.search.values import QueryLimits, SearchQuery

ROOT = Path(__file__).parents[2]
CLIPS = 300  # what `emcl demo` makes unless told otherwise


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    prepare(folder, CLIPS, say=lambda text: None)
    return folder


@pytest.mark.slow
def test_the_first_hit_of_each_showcased_query_carries_it_as_its_caption(demo):
    lines = (demo / "clips" / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    captions = {Path(row["video"]).stem: row["captions"] for row in map(json.loads, lines)}
    engine = Engine(
        load_encoder("demo", device="cpu"),
        lambda: StoreReader.open(demo / "store"),
        limits=QueryLimits(max_texts=len(SHOWCASE), max_text_chars=200, max_candidates=100),
        cache_entries=0,
    )
    with closing(engine):
        results = engine.search([SearchQuery(text=query) for query in SHOWCASE])
    for query, result in zip(SHOWCASE, results, strict=True):
        found = captions[result.hits[0].title]
        assert query in found, f"{query!r} finds {found}"
    assert examples(demo, 6) == list(SHOWCASE)


@pytest.mark.parametrize("source", ["README.md", "docs/api.md", "docs/clients.md", "service/schemas/search.py"])
def test_documented_queries_of_the_demo_library_are_showcased(source):
    text = (ROOT / source).read_text(encoding="utf-8")
    shown = re.findall(r'(?:"texts?": \[?|search\(\s*|query\(text=)"([^"]+)"', text)
    of_shapes = [query for query in shown if re.search(r"circle|square|triangle|star|ring|cross|heart", query)]
    assert of_shapes, f"{source} shows no query of the demo library"
    assert set(of_shapes) <= set(SHOWCASE)
