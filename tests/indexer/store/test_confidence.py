"""Confidence of hits: what unrelated texts reach over a library, kept with the generation and covered by its digest."""

from dataclasses import replace

import numpy as np
import pytest
from service_support import random_video

from indexer.errors import Damaged
from indexer.locations import Location
from indexer.store import confidence
from indexer.store.confidence import BACKGROUND, CONFIDENCE, SHARE, background_texts, everyday_and_nonsense, fit
from indexer.store.config import ModelSpec, StoreSettings
from indexer.store.reader import StoreReader
from indexer.store.writer import StoreWriter
from model.config import EMCLConfig
from model.evaluate.corpus import with_emcl


class Counting:
    """The encoder, counting the texts that it encodes for publications."""

    def __init__(self, encoder):
        self._encoder, self.texts = encoder, 0
        self.fingerprint, self.pooling, self.calibrated = encoder.fingerprint, encoder.pooling, None
        self.fit_frozen_map = encoder.fit_frozen_map

    def encode_texts(self, texts):
        self.texts += len(texts)
        return self._encoder.encode_texts(texts)


class WithoutTexts:
    """What publishes without a text tower."""

    def __init__(self, encoder):
        self.pooling, self.calibrated, self.fit_frozen_map = encoder.pooling, None, encoder.fit_frozen_map


def add(writer, encoder, numbers):
    for number in numbers:
        video = random_video(np.random.default_rng(number), encoder, 3 * number, most_frames=4)
        writer.add_locations(
            [Location(path=f"/{video.name}", video_id=video.video_id, size_bytes=1, modified_ns=number)]
        )
        writer.add_videos([video])


@pytest.fixture
def writer(tmp_path, tiny_encoder):
    settings = StoreSettings(
        model_spec=ModelSpec(), fingerprint=tiny_encoder.fingerprint, dim=tiny_encoder.dim,
        sampling=tiny_encoder.config.sampling,
    )  # fmt: skip
    with StoreWriter.open(tmp_path / "store", settings=settings) as opened:
        add(opened, tiny_encoder, range(1, 41))
        yield opened


def by_hand(reader, encoder, text_D, ids):
    """The definition, one hit at a time."""
    base = reader.correction.base_rows
    background = base(encoder.encode_texts(background_texts()), "text").astype(np.float64)
    items = base(reader.segment_embeddings(reader.segment_ids()), "video").astype(np.float64)
    asked = background - SHARE * background.mean(axis=0)
    best = [max(float(row @ item) for item in items) for row in asked]
    query = base(text_D[None], "text")[0] - SHARE * background.mean(axis=0)
    found = [float(query @ base(reader.segment_embeddings(np.array([number])), "video")[0]) for number in ids]
    return [sum(one < t for one in best) / (len(best) + 1) for t in found]


def test_it_is_the_share_of_unrelated_texts_whose_best_match_fits_less_well(writer, tiny_encoder):
    writer.publish(tiny_encoder)
    with StoreReader.open(writer.path) as reader:
        (row_D,) = tiny_encoder.encode_texts(["a red circle"])
        ids = reader.segment_ids()
        found = reader.confidences(row_D, ids)
        one_text = 1.01 / (len(background_texts()) + 1)  # ties in the last digit of a float
        assert found == pytest.approx(by_hand(reader, tiny_encoder, row_D, ids), abs=one_text)
        assert 0 <= found.min() < found.max() < 1


def test_a_text_as_unrelated_as_the_background_reaches_the_line_in_its_share_of_cases():
    rng = np.random.default_rng(5)
    items = rng.normal(size=(200, 16)).astype(np.float32)
    texts = rng.normal(size=(4000, 16)).astype(np.float32)
    fitted = fit(texts[:400], [items[:150], items[150:]])
    best = np.array([fitted.of(text, items).max() for text in texts[400:]])
    for line in (0.5, 0.9):  # three standard errors of the 400 and of the 3,600
        assert np.mean(best >= line) == pytest.approx(
            1 - line, abs=3 * np.sqrt(line * (1 - line) * (1 / 400 + 1 / 3600))
        )


def test_a_constant_for_all_texts_is_partly_taken_off():
    hub, match = np.array([1.0, 0.0], np.float32), np.array([0.0, 1.0], np.float32)
    texts = np.array([[0.9, 0.1], [0.9, 0.2], [0.9, -0.3]], np.float32)
    items, query = np.stack([hub, match]), np.array([0.9, 0.7], np.float32)
    plain, fitted = fit(texts, [items], share=0.0), fit(texts, [items], share=0.25)
    assert plain.of(query, items).tolist() == [0, 0]  # 0.9 as all texts have, and less
    assert fitted.best_n == pytest.approx([0.675] * 3)
    in_turn = fit(texts, [items[:1], items[:0], items[1:]], share=0.25)
    assert in_turn.best_n.tolist() == fitted.best_n.tolist()
    assert fitted.of(query, items).tolist() == [0, 0.75]  # 0.675 as all have, and 0.7


def test_texts_are_encoded_once_for_a_model(writer, tiny_encoder):
    counting = Counting(tiny_encoder)
    first = writer.publish(counting)
    assert counting.texts == len(background_texts())
    assert CONFIDENCE in first.files
    add(writer, tiny_encoder, range(50, 60))
    writer.publish(counting)
    assert counting.texts == len(background_texts())
    counting.fingerprint = "another"
    writer.publish(counting)
    (writer.path / BACKGROUND).write_bytes(b"damaged")
    writer.publish(counting)
    assert counting.texts == 3 * len(background_texts())


def test_what_is_added_later_counts_at_once(writer, tiny_encoder):
    """A view of a generation and its overlay knows what a generation of all of it would."""
    plain = with_emcl(tiny_encoder, EMCLConfig(beta=0.0))  # else each publication fits another map
    writer.publish(plain)
    (row_D,) = tiny_encoder.encode_texts(["a red circle"])
    with StoreReader.open(writer.path) as reader:
        add(writer, tiny_encoder, [50, 51])
        view = reader.refreshed()
        add(writer, tiny_encoder, [52])
        view = view.refreshed()
        grown = view.confidences(row_D, view.segment_ids())
        before = reader.confidences(row_D, reader.segment_ids())
    with StoreReader.open(writer.path) as again:
        np.testing.assert_array_equal(again.confidences(row_D, again.segment_ids()), grown)
    writer.publish(plain)
    with StoreReader.open(writer.path) as published:
        one_text = 1.01 / (len(background_texts()) + 1)
        assert published.confidences(row_D, published.segment_ids()) == pytest.approx(grown, abs=one_text)
    assert grown[: len(before)].sum() < before.sum()  # more segments: the best of unrelated texts are nearer


def test_a_store_that_was_published_empty_knows_it_too(tmp_path, tiny_encoder):
    from model.emcl.em import FrozenMap

    settings = StoreSettings(
        model_spec=ModelSpec(), fingerprint=tiny_encoder.fingerprint, dim=tiny_encoder.dim,
        sampling=tiny_encoder.config.sampling,
    )  # fmt: skip
    with StoreWriter.open(tmp_path / "empty", settings=settings) as opened:
        opened.publish(tiny_encoder, empty_map=FrozenMap.neutral(tiny_encoder.dim))
        add(opened, tiny_encoder, range(20))
        (row_D,) = tiny_encoder.encode_texts(["a red circle"])
        with StoreReader.open(tmp_path / "empty") as reader:
            found = reader.confidences(row_D, reader.segment_ids())
            assert found == pytest.approx(
                by_hand(reader, tiny_encoder, row_D, reader.segment_ids()), abs=1.01 / (len(background_texts()) + 1)
            )


def test_the_digest_of_the_generation_covers_it(writer, tiny_encoder):
    folder = writer.path / "generations" / writer.publish(tiny_encoder).generation
    found = confidence.read(folder / CONFIDENCE)
    confidence.write(folder / CONFIDENCE, replace(found, best_n=found.best_n + 1))
    with pytest.raises(Damaged, match=CONFIDENCE):
        StoreReader.open(writer.path)


def test_a_publication_without_a_text_tower_knows_no_confidence(writer, tiny_encoder):
    manifest = writer.publish(WithoutTexts(tiny_encoder))
    assert CONFIDENCE not in manifest.files
    with StoreReader.open(writer.path) as reader:
        assert not reader.has_confidence
        assert reader.confidences(tiny_encoder.encode_texts(["a"])[0], reader.segment_ids()) is None


def test_the_texts_are_a_few_hundred_and_differ():
    everyday, nonsense = everyday_and_nonsense()
    assert len(everyday) >= 300
    assert len(nonsense) == 80
    assert len(set(background_texts())) == len(background_texts())
    assert all(text == text.strip() and text for text in background_texts())
