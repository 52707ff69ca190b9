"""EMCL is off for a model whose setting nobody chose on labelled pairs, and what is active is reported."""

import numpy as np
import pytest

from model.config import EMCLConfig
from model.emcl.active import active_emcl
from model.emcl.correction import Correction
from model.emcl.em import EMCL, FrozenMap
from model.encoder import load_encoder

torch = pytest.importorskip("torch")


def test_an_uncalibrated_checkpoint_is_loaded_with_emcl_off():
    served, configured = load_encoder("demo", device="cpu"), load_encoder("demo", device="cpu", emcl="configured")
    assert (served.config.emcl.beta, configured.config.emcl.beta) == (0.0, 0.1)
    assert served.fingerprint == configured.fingerprint
    rng = np.random.default_rng(0)
    text, frames = rng.normal(size=(2, served.dim)), rng.normal(size=(2, 5, 3, served.dim))
    text, frames, mask = text.astype(np.float32), frames.astype(np.float32), np.ones((2, 5, 3), bool)
    pooled = served.score_videos(text, frames, mask, rerank="none").scores_QN
    np.testing.assert_array_equal(served.score_videos(text, frames, mask, rerank="emcl").scores_QN, pooled)
    assert not np.array_equal(configured.score_videos(text, frames, mask, rerank="emcl").scores_QN, pooled)


def test_a_calibrated_checkpoint_keeps_the_setting_that_was_chosen(tiny_checkpoint, tiny_config):
    assert load_encoder(str(tiny_checkpoint), device="cpu").config.emcl == tiny_config.emcl


def test_a_record_of_another_setting_does_not_count(tiny_encoder, tiny_config, tmp_path):
    from model.checkpoint import save_checkpoint

    other = tiny_config.emcl.model_copy(update={"beta": 0.7}).model_dump(mode="json")
    path = save_checkpoint(tiny_encoder.net, tmp_path / "m.safetensors", metadata={"calibration": {"emcl": other}})
    assert load_encoder(str(path), device="cpu").config.emcl.beta == 0


def test_with_strength_0_the_frozen_map_only_normalises():
    rows = torch.randn(40, 16)
    frozen = EMCL(16, EMCLConfig(num_bases=4, beta=0.0)).freeze(rows)
    torch.testing.assert_close(frozen.apply(rows), torch.nn.functional.normalize(rows, dim=-1), rtol=0, atol=0)


def test_what_is_active_is_said_in_words():
    neutral = Correction(frozen=FrozenMap.neutral(16))
    published = Correction(frozen=EMCL(16, EMCLConfig(num_bases=4, beta=0.2)).freeze(torch.randn(40, 16)))
    off, stale = active_emcl(EMCLConfig(beta=0.0), neutral), active_emcl(EMCLConfig(beta=0.0), published)
    assert (off.mode, off.strength, off.text) == ("off", 0.0, "off, not calibrated for this model")
    assert stale.mode == "off"
    assert "emcl index rebuild" in stale.text
    active = active_emcl(EMCLConfig(beta=0.2), published)
    assert (active.mode, active.strength, active.text) == ("channel", 0.2, "channel, β 0.2, calibrated")


def test_another_state_is_refused(tiny_encoder):
    with pytest.raises(ValueError, match="32 bases"):
        tiny_encoder.net.set_emcl(EMCLConfig(num_bases=4))
