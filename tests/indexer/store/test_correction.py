"""Hub and paired bases in a store: published, digested, taken up by additions, and the service ranks as offline."""

import json

import numpy as np
import pytest
from service_support import LIMITS, random_video
from typer.testing import CliRunner

from indexer.cli import app as index_app
from indexer.errors import Damaged
from indexer.locations import Location
from indexer.store import bank
from indexer.store.config import ModelSpec, StoreSettings
from indexer.store.reader import StoreReader
from indexer.store.verify import verify
from indexer.store.writer import StoreWriter
from model.config import EMCLConfig
from model.emcl.correction import CorrectionSettings
from model.emcl.paired import PairedBases
from model.evaluate.corpus import Corpus, with_emcl
from model.evaluate.rank import rank_corrected
from service.search.engine import Engine
from service.search.values import Ranking, RerankQuery, SearchQuery, SegmentRef, UploadQuery

VIDEOS, CAPTIONS, CANDIDATES = 120, 90, 25
MODES = ("off", "hub", "paired", "paired+hub")


def name_of(number):
    return f"{3 * number:064x}"


def video(encoder, number):
    """A video of one segment: that is what the support's have whose number divides by 3."""
    side = encoder.encode_texts(["a thing"])[0]  # leaning, features are also what float16 can hold
    return random_video(np.random.default_rng(number), encoder, 3 * number, most_frames=5, lean_D=side)


@pytest.fixture(scope="module")
def encoder(tiny_encoder):
    return with_emcl(tiny_encoder, EMCLConfig(beta=0.0))


def write_settings(path, encoder, mode):
    """A bank of texts, and paired bases, as commands leave them in a store."""
    texts = encoder.encode_texts([f"query {n} about {n % 17} things" for n in range(60)])
    if "hub" in mode:
        bank.write_bank_texts(path, texts, "60 texts")
    paired = None
    if "paired" in mode:
        videos = texts + np.random.default_rng(2).normal(size=texts.shape).astype(np.float32)
        paired = PairedBases.fit(texts, videos, bases=8, weight=1.0)
    bank.write_settings(path, CorrectionSettings(paired=paired, hub_strength=0.5 if "hub" in mode else 0.0))


def fill(path, encoder, mode, numbers=range(VIDEOS)):
    settings = StoreSettings(
        model_spec=ModelSpec(), fingerprint=encoder.fingerprint, dim=encoder.dim, sampling=encoder.config.sampling
    )
    with StoreWriter.open(path, settings=settings) as writer:
        write_settings(path, encoder, mode)
        for number in numbers:
            writer.add_locations(
                [Location(path=f"/n/{number}.mp4", video_id=name_of(number), size_bytes=1, modified_ns=1)]
            )
            writer.add_videos([video(encoder, number)])
        texts = [f"caption {number} of a thing" for number in range(CAPTIONS)]
        writer.add_captions([(None, text) for text in texts], encoder.encode_texts(texts))
        writer.publish(encoder)
    return path


@pytest.fixture(scope="module", params=MODES)
def stored(request, tmp_path_factory, encoder):
    return request.param, fill(tmp_path_factory.mktemp("stored") / "store", encoder, request.param)


def open_engine(path, encoder):
    return Engine(
        encoder, lambda: StoreReader.open(path, fingerprint=encoder.fingerprint), limits=LIMITS, cache_entries=0
    )


def offline(path, encoder):
    """The same ranking by the evaluation's code, of what the store holds."""
    with StoreReader.open(path) as reader:
        ids, captions = reader.segment_ids(), reader.caption_ids()
        features, mask = reader.segment_features(ids)
        corpus = Corpus(
            text_TD=reader.caption_embeddings(captions),
            features_VFD=features,
            mask_VF=mask,
            video_of_text_T=np.zeros(len(captions), np.intp),
        )
        names = [segment.video_id for segment in reader.segments(ids)]
        texts = [caption.text for caption in reader.captions(captions)]
        reranked, first = rank_corrected(encoder, corpus, reader.correction, candidates=CANDIDATES)
        return reranked, first, names, texts


def test_the_generation_says_what_it_applies(stored):
    mode, path = stored
    with StoreReader.open(path) as reader:
        assert reader.correction.mode == mode
        assert ("segment_hubs.npy" in reader.manifest.files) == ("hub" in mode)
    assert not verify(path).problems


@pytest.mark.parametrize("rerank", ["emcl", "frozen"])
def test_the_service_ranks_texts_as_the_evaluation_does(stored, encoder, rerank):
    _, path = stored
    reranked, first, names, texts = offline(path, encoder)
    scores_TV = (reranked if rerank == "emcl" else first).text_to_video_TV
    engine = open_engine(path, encoder)
    ranking = Ranking(k=CANDIDATES, candidates=CANDIDATES, rerank=rerank)
    results = engine.search([SearchQuery(text=text, ranking=ranking) for text in texts[:20]])
    for place, result in enumerate(results):
        found = np.array([hit.score for hit in result.hits])
        expected = np.sort(scores_TV[place][np.isfinite(scores_TV[place])])[::-1][:CANDIDATES]
        np.testing.assert_allclose(found, expected, atol=2e-5)
        by_name = dict(zip(names, scores_TV[place], strict=True))
        np.testing.assert_allclose(found, [by_name[hit.video_id] for hit in result.hits], atol=2e-5)
    engine.close()


def test_the_service_ranks_captions_as_the_evaluation_does(stored, encoder):
    _, path = stored
    engine = open_engine(path, encoder)
    rng = np.random.default_rng(3)
    frames = rng.integers(0, 256, (4, *encoder.preprocess.shape), dtype=np.uint8)
    upload = UploadQuery(
        frames_FHWC=frames,
        timestamps_seconds=np.arange(4.0),
        ranking=Ranking(k=CANDIDATES, candidates=CANDIDATES),
    )
    (result,) = engine.search_uploads([upload])
    features, mask = encoder.encode_videos(frames[None], np.ones((1, 4), bool)), np.ones((1, 4), bool)
    with StoreReader.open(path) as reader:
        captions = reader.caption_ids()
        corpus = Corpus(
            text_TD=reader.caption_embeddings(captions),
            features_VFD=features,
            mask_VF=mask,
            video_of_text_T=np.zeros(len(captions), np.intp),
        )
        reranked, _ = rank_corrected(encoder, corpus, reader.correction, candidates=CANDIDATES)
        texts = [caption.text for caption in reader.captions(captions)]
    by_text = dict(zip(texts, reranked.video_to_text_VT[0], strict=True))
    np.testing.assert_allclose(
        [hit.score for hit in result.captions], [by_text[h.text] for h in result.captions], atol=2e-5
    )
    assert len(result.captions) == CANDIDATES
    engine.close()


def test_what_is_off_is_pooling_and_cosine_to_the_last_bit(tmp_path, encoder):
    engine = open_engine(fill(tmp_path / "store", encoder, "off"), encoder)
    for rerank in ("emcl", "none"):
        results = engine.search([SearchQuery(text="a thing", ranking=Ranking(k=30, rerank=rerank))])
        scores = [(hit.video_id, hit.score) for hit in results[0].hits]
        if rerank == "emcl":
            pooled = scores
            assert results[0].source.emcl == "off"
    assert scores == pooled
    engine.close()


def test_neighbours_in_a_batch_change_nothing(stored, encoder):
    _, path = stored
    engine = open_engine(path, encoder)
    queries = [SearchQuery(text=f"thing {n}", ranking=Ranking(k=9)) for n in range(7)]
    together = engine.search(queries)
    for query, result in zip(queries, together, strict=True):
        alone = engine.search([query])[0]
        np.testing.assert_allclose([h.score for h in alone.hits], [h.score for h in result.hits], atol=1e-5)
    engine.close()


def test_a_video_that_is_added_has_its_number_at_once(stored, encoder, tmp_path):
    mode, _ = stored
    path = fill(tmp_path / "store", encoder, mode)
    with StoreWriter.open(path) as writer:
        for number in range(VIDEOS, VIDEOS + 3):
            writer.add_locations(
                [Location(path=f"/n/{number}.mp4", video_id=name_of(number), size_bytes=1, modified_ns=1)]
            )
            writer.add_videos([video(encoder, number)])
    engine = open_engine(path, encoder)
    reranked, _, names, texts = offline(path, encoder)
    everything = Ranking(k=VIDEOS + 3, candidates=VIDEOS + 3)
    (result,) = engine.search([SearchQuery(text=texts[0], ranking=everything)])
    scores = {hit.video_id: hit.score for hit in result.hits}
    given = tuple(SegmentRef(video_id=name_of(VIDEOS + n)) for n in range(3))
    (again,) = engine.rerank([RerankQuery(text=texts[0], segments=given)])
    for hit in again.hits:
        assert hit.score == pytest.approx(scores[hit.video_id], abs=1e-5)
    found = dict(zip(names, reranked.text_to_video_TV[0], strict=True))
    for hit in result.hits:
        if np.isfinite(found[hit.video_id]):
            assert hit.score == pytest.approx(found[hit.video_id], abs=2e-5)
    engine.close()


def test_own_captions_are_the_bank_where_there_are_enough(tmp_path, encoder):
    path = tmp_path / "store"
    settings = StoreSettings(
        model_spec=ModelSpec(), fingerprint=encoder.fingerprint, dim=encoder.dim, sampling=encoder.config.sampling
    )
    with StoreWriter.open(path, settings=settings) as writer:
        writer.add_locations([Location(path="/n/0.mp4", video_id=name_of(0), size_bytes=1, modified_ns=1)])
        writer.add_videos([video(encoder, 0)])
        for count, mode in ((199, "off"), (200, "hub")):
            texts = [f"a thing with number {n}" for n in range(count)][-200 if count == 199 else -1 :]
            writer.add_captions([(None, text) for text in texts], encoder.encode_texts(texts))
            writer.publish(encoder)
            with StoreReader.open(path) as reader:
                assert reader.correction.mode == mode
    with StoreReader.open(path) as reader:
        assert reader.correction.text() == "hub bases, 200 captions, strength 0.5"


def test_a_calibrated_model_keeps_its_paper_results_form(tmp_path, tiny_encoder):
    with StoreReader.open(fill(tmp_path / "store", tiny_encoder, "hub")) as reader:
        assert reader.correction.mode == "channel"


@pytest.mark.parametrize(("file", "changed"), [(bank.BANK, "rows"), (bank.CORRECTION, "paired/video_map_DK")])
def test_a_damaged_file_is_refused(tmp_path, encoder, file, changed):
    path = fill(tmp_path / "store", encoder, "paired+hub")
    with np.load(path / file) as stored:
        arrays = dict(stored)
    arrays[changed] = arrays[changed] * 2
    np.savez(path / file, **arrays)
    with StoreWriter.open(path) as writer, pytest.raises(Damaged, match="damaged"):
        writer.publish(encoder)


def test_numbers_of_another_generation_are_noticed(tmp_path, encoder):
    path = fill(tmp_path / "store", encoder, "hub")
    (folder,) = (path / "generations").iterdir()
    numbers = np.load(folder / "segment_hubs.npy")
    np.save(folder / "segment_hubs.npy", numbers + 1)
    with pytest.raises(Damaged, match="segment_hubs"):
        StoreReader.open(path)


def test_commands_fit_bases_and_publish(clip_store, validation_folder, tiny_checkpoint, tmp_path):
    """``emcl index bank`` and ``emcl index bases`` on a copy of a store of the tiny model, uncalibrated."""
    import shutil

    from model.encoder import load_encoder

    for suffix in (".safetensors", ".json"):
        shutil.copyfile(tiny_checkpoint.with_suffix(suffix), tmp_path / f"plain{suffix}")
    description = tmp_path / "plain.json"
    content = json.loads(description.read_text())
    content["metadata"] = {}
    description.write_text(json.dumps(content))
    store = tmp_path / "store"
    shutil.copytree(clip_store / "store", store)
    runner = CliRunner()

    def run(*arguments):
        result = runner.invoke(index_app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output

    assert "EMCL: off, not calibrated" in run("rebuild", "--store", store, "--model", tmp_path / "plain.safetensors")
    texts = tmp_path / "queries.txt"
    texts.write_text("\n".join(f"a thing that moves {n} times" for n in range(40)))
    assert "EMCL: hub bases, 40 texts of queries.txt" in run("bank", "--store", store, "--captions", texts)
    said = run("bases", "--store", store, "--pairs", validation_folder, "--weight", "0.5", "--device", "cpu")
    assert "paired bases, 20 pairs, weight 0.5" in said
    encoder = load_encoder(str(tmp_path / "plain.safetensors"), device="cpu")
    with StoreReader.open(store, fingerprint=encoder.fingerprint) as reader:
        assert reader.correction.mode == "paired+hub"
    assert "paired bases, 20 pairs" in run("list", "--store", store)
