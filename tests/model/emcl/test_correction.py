"""One interface for all forms: rows of the index and of queries, and scores of the rerank."""

import numpy as np
import pytest
from numeric_support import score_tolerance

torch = pytest.importorskip("torch")

from model.config import EMCLConfig, PoolingConfig  # noqa: E402 - torch first
from model.emcl.correction import Correction, CorrectionSettings  # noqa: E402
from model.emcl.em import EMCL, FrozenMap  # noqa: E402
from model.emcl.hub import HubBases, unit  # noqa: E402
from model.emcl.paired import PairedBases  # noqa: E402
from model.emcl.pooling import pool_videos  # noqa: E402

DIM = 16
CLOSE = score_tolerance(DIM, products=3, condition=2)  # two norms and a product, of rows of norm sqrt(2)
KAPPA = 20  # of hub bases: their fit multiplies what rounding does to a cosine
MODES = ("off", "hub", "paired", "paired+hub")


def rows(count, seed):
    """Raw rows of a common topic, so that inner products are not around 0."""
    rng = np.random.default_rng(seed)
    return (3 * rng.normal(size=(count, DIM)) + 2).astype(np.float32)


def make(mode, turn=None, order=None):
    texts, videos = rows(300, 1), rows(300, 2)
    videos[:, :4] = texts[:, :4]
    if order is not None:
        texts, videos = texts[order], videos[order]
    if turn is not None:
        texts, videos = texts @ turn, videos @ turn
    paired = PairedBases.fit(texts, videos, bases=4, weight=0.7) if "paired" in mode else None
    banks = {"videos": (texts, "300 captions"), "captions": (videos, "300 segments")} if "hub" in mode else {}
    settings = CorrectionSettings(paired=paired)
    return Correction.fit(FrozenMap.neutral(DIM), settings, banks=banks, pooling=PoolingConfig())


@pytest.mark.parametrize("mode", MODES)
def test_the_mode_has_its_name(mode):
    assert make(mode).mode == mode


def test_off_is_the_cosine_to_the_last_bit():
    correction, texts, videos = make("off"), rows(9, 3), rows(20, 4)
    normalise = torch.nn.functional.normalize
    np.testing.assert_array_equal(correction.items(videos, "videos"), normalise(torch.from_numpy(videos), dim=-1))
    np.testing.assert_array_equal(
        correction.queries(texts, "text", "videos"), normalise(torch.from_numpy(texts), dim=-1)
    )


@pytest.mark.parametrize("settings", [CorrectionSettings(hub_strength=0.0), CorrectionSettings(paired=None)])
def test_without_bank_or_strength_nothing_is_corrected(settings):
    bank = {} if settings.hub_strength else {"videos": (rows(300, 1), "captions")}
    assert Correction.fit(FrozenMap.neutral(DIM), settings, banks=bank, pooling=PoolingConfig()).mode == "off"


def test_paired_bases_of_weight_0_are_left_out():
    settings = CorrectionSettings(paired=PairedBases.fit(rows(99, 1), rows(99, 2), weight=0.0))
    assert Correction.fit(FrozenMap.neutral(DIM), settings, banks={}, pooling=PoolingConfig()).mode == "off"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("against", ["videos", "captions"])
def test_index_rows_give_the_corrected_score(mode, against):
    correction = make(mode)
    texts, videos = rows(9, 3), rows(20, 4)
    asking, asked = (texts, videos) if against == "videos" else (videos, texts)
    modality, other = ("text", "video") if against == "videos" else ("video", "text")
    expected = unit(asking) @ unit(asked).T
    if correction.paired is not None:
        own = correction.paired
        shared = own.rows(asking, modality) @ own.rows(asked, other).T
        expected = (expected + own.mixture * shared) / (1 + own.mixture)
    if correction.hubs:
        expected = expected - 0.5 * correction.hubs[against].numbers(correction.base_rows(asked, other))
    items, queries = correction.items(asked, against), correction.queries(asking, modality, against)
    np.testing.assert_allclose(queries @ items.T, expected, rtol=0, atol=CLOSE)
    assert items.shape[1] == queries.shape[1] == correction.width(against, DIM)
    np.testing.assert_allclose(np.linalg.norm(items, axis=1), np.sqrt(2) if correction.hubs else 1, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("mode", MODES)
def test_videos_look_for_videos_by_cosine(mode):
    correction, videos = make(mode), rows(20, 4)
    products = correction.queries(videos, "video", "videos") @ correction.items(videos, "videos").T
    np.testing.assert_allclose(products, unit(videos) @ unit(videos).T, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("mode", MODES)
def test_hubs_can_be_left_out_of_a_query(mode):
    correction, texts, videos = make(mode), rows(9, 3), rows(20, 4)
    plain = make(mode.replace("+hub", "").replace("hub", "off"))
    products = correction.queries(texts, "text", "videos", hubs=False) @ correction.items(videos, "videos").T
    expected = plain.queries(texts, "text", "videos") @ plain.items(videos, "videos").T
    np.testing.assert_allclose(products, expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("mode", ["hub", "paired", "paired+hub"])
def test_neither_a_rotation_nor_the_order_of_bank_and_pairs_matters(mode):
    texts, videos = rows(9, 3), rows(20, 4)
    turn = np.linalg.qr(np.random.default_rng(7).normal(size=(DIM, DIM)))[0].astype(np.float32)
    plain, turned = make(mode), make(mode, turn=turn)
    shuffled = make(mode, order=np.random.default_rng(8).permutation(300))
    scores = plain.queries(texts, "text", "videos") @ plain.items(videos, "videos").T
    again = turned.queries(texts @ turn, "text", "videos") @ turned.items(videos @ turn, "videos").T
    np.testing.assert_allclose(again, scores, rtol=0, atol=KAPPA * CLOSE)
    other = shuffled.queries(texts, "text", "videos") @ shuffled.items(videos, "videos").T
    np.testing.assert_allclose(other, scores, rtol=0, atol=KAPPA * CLOSE)


@pytest.mark.parametrize("mode", ["hub", "paired+hub"])
@pytest.mark.parametrize("mask", ["before", "after"])
def test_the_rerank_has_numbers_of_its_own_score(mode, mask):
    made = make(mode)
    correction = Correction(**{**vars(made), "pooling": PoolingConfig(mask=mask)})
    features = np.random.default_rng(5).normal(size=(11, 3, DIM)).astype(np.float32)
    there = np.arange(3) < np.random.default_rng(6).integers(1, 4, 11)[:, None]
    features *= there[..., None]
    bases = correction.hubs["videos"]
    asking = unit(bases.means_KD[:, :DIM]) * bases.norm
    products = np.empty((len(asking), 11))
    for k, query in enumerate(asking):
        pooled, _ = pool_videos(
            torch.from_numpy(query[None].astype(np.float32)),
            torch.from_numpy(features[None]),
            torch.from_numpy(there[None]),
            correction.pooling,
        )
        products[k] = correction.base_rows(pooled[0].numpy(), "video") @ bases.means_KD[k]
    numbers = correction.numbers_of_segments(features, there)
    np.testing.assert_allclose(numbers, bases.of_scores(products), rtol=0, atol=CLOSE)
    alone = [correction.numbers_of_segments(features[n : n + 1], there[n : n + 1])[0] for n in range(11)]
    np.testing.assert_allclose(numbers, alone, rtol=0, atol=CLOSE)


def test_the_pass_mixes_cosines_as_the_index_does():
    correction, texts, videos = make("paired"), rows(4, 3), rows(20, 4)
    cosines = torch.from_numpy(unit(texts) @ unit(videos).T)
    mixed = correction.mix(torch.from_numpy(texts)[:, None], torch.from_numpy(videos)[None].expand(4, -1, -1), cosines)
    expected = correction.queries(texts, "text", "videos") @ correction.items(videos, "videos").T
    np.testing.assert_allclose(mixed.numpy(), expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("mode", MODES)
def test_a_correction_survives_its_arrays(mode, tmp_path):
    correction, texts, videos = make(mode), rows(9, 3), rows(20, 4)
    np.savez(tmp_path / "map.npz", **correction.to_arrays())
    with np.load(tmp_path / "map.npz") as arrays:
        again = Correction.from_arrays(dict(arrays))
    np.testing.assert_array_equal(again.items(videos, "videos"), correction.items(videos, "videos"))
    np.testing.assert_array_equal(again.queries(texts, "text", "videos"), correction.queries(texts, "text", "videos"))
    assert (again.mode, again.order, again.pooling) == (correction.mode, correction.order, correction.pooling)


def test_a_generation_of_an_earlier_version_has_a_map_alone():
    frozen = EMCL(DIM, EMCLConfig(num_bases=4, beta=0.2)).freeze(torch.from_numpy(rows(50, 1)))
    again = Correction.from_arrays(frozen.to_arrays())
    assert (again.mode, again.has_own_pass) == ("channel", False)
    np.testing.assert_array_equal(again.items(rows(5, 2), "videos"), frozen.apply(torch.from_numpy(rows(5, 2))))


def test_a_published_map_excludes_other_bases():
    frozen = EMCL(DIM, EMCLConfig(num_bases=4, beta=0.2)).freeze(torch.from_numpy(rows(50, 1)))
    banks = {"videos": (rows(300, 1), "300 captions")}
    assert Correction.fit(frozen, CorrectionSettings(), banks=banks, pooling=PoolingConfig()).mode == "channel"


def test_settings_survive_their_arrays(tmp_path):
    paired = PairedBases.fit(rows(99, 1), rows(99, 2), bases=4)
    settings = CorrectionSettings(hub_strength=0.25, hub_bases=64, paired=paired, order="stage1", record='{"a": 1}')
    np.savez(tmp_path / "settings.npz", **settings.to_arrays())
    with np.load(tmp_path / "settings.npz") as arrays:
        again = CorrectionSettings.from_arrays(dict(arrays))
    assert (again.hub_strength, again.hub_bases, again.order, again.record) == (0.25, 64, "stage1", '{"a": 1}')
    assert again.paired.pairs == 99


def test_what_is_active_is_said_in_words():
    assert make("hub").text() == "hub bases, 300 captions and 300 segments, strength 0.5"
    assert make("paired").text() == "paired bases, 300 pairs, weight 0.7"
    assert HubBases.fit(rows(20, 1)).strength == 0.5
