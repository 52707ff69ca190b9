"""``emcl calibrate``: what it writes into a checkpoint, when it writes nothing, and how the service reads it."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from model.checkpoint import CheckpointError, load_checkpoint, rewrite_settings, save_checkpoint, stored_dtype
from model.config import EMCLConfig, SearchConfig
from model.data.validation import TestSplitError, data_digest, open_for_choosing
from model.study import calibrate as module
from service.cli import app

SMALL_GRID = ("--beta", "0.1,0.5", "--sigma", "0.1", "--bases", "4", "--iterations", "2", "--temperatures", "0.01,0.1")


# The command and what it writes.


@pytest.fixture
def checkpoint(tmp_path, tiny_checkpoint) -> Path:
    for suffix in (".safetensors", ".json"):
        shutil.copyfile(tiny_checkpoint.with_suffix(suffix), tmp_path / f"mine{suffix}")
    return tmp_path / "mine.safetensors"


def run(*arguments):
    return CliRunner().invoke(
        app, [str(argument) for argument in ("calibrate", "--form", "published", *arguments, "--device", "cpu")]
    )


def test_the_choice_is_written_into_the_description_alone(checkpoint, validation_folder, tmp_path):
    weights, before = checkpoint.read_bytes(), load_checkpoint(checkpoint)
    bases = before.config.emcl.num_bases
    options = [*SMALL_GRID[:4], "--bases", bases, "--iterations", 2, "--mode", "channel", "--json", tmp_path / "f.json"]
    result = run("--model", checkpoint, "--data", validation_folder, *options)
    assert result.exit_code == 0, result.output
    assert "emcl index rebuild" in result.output
    assert checkpoint.read_bytes() == weights
    net = load_checkpoint(checkpoint)
    described = json.loads(checkpoint.with_suffix(".json").read_text(encoding="utf-8"))
    stored = described["metadata"]["calibration"]
    assert stored["emcl"] == net.config.emcl.model_dump(mode="json")
    assert (stored["videos"], stored["captions"], stored["split"]) == (10, 20, "val")
    assert stored["data_digest"] == data_digest(open_for_choosing(validation_folder, "val").clips)
    assert stored["settings_tried"] == 3
    figures = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    assert len(figures["settings"]) == 3
    assert figures["held_out"]["folds"] == len(figures["held_out"]["choices"]) == 5


def test_a_dry_run_writes_nothing(checkpoint, validation_folder):
    before = {file.name: file.read_bytes() for file in checkpoint.parent.iterdir()}
    options = [*SMALL_GRID, "--dry-run", "--split", "train"]
    result = run("--model", checkpoint, "--data", validation_folder, *options)
    assert result.exit_code == 0, result.output
    assert "training pairs" in result.output
    assert "nothing was written" in result.output
    assert {file.name: file.read_bytes() for file in checkpoint.parent.iterdir()} == before


def test_another_number_of_bases_is_another_model(checkpoint, validation_folder, tmp_path, monkeypatch):
    """The state is saved with the weights, and a message says that indexes must be built again."""
    monkeypatch.setattr(module.Calibration, "choice", lambda self, **_: EMCLConfig(num_bases=4, beta=0.5))
    new = tmp_path / "new.safetensors"
    before = checkpoint.with_suffix(".json").read_bytes()
    result = run("--model", checkpoint, "--data", validation_folder, *SMALL_GRID, "--output", new)
    assert result.exit_code == 0, result.output
    assert "emcl index build" in result.output
    assert checkpoint.with_suffix(".json").read_bytes() == before, "the checkpoint itself stays"
    changed = load_checkpoint(new)
    assert changed.emcl.state.shape == (changed.embed_dim, 4)
    old, found = (json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) for path in (checkpoint, new))
    assert old["fingerprint"] != found["fingerprint"]
    assert found["metadata"]["calibration"] != old["metadata"].get("calibration")


def test_only_if_significant_leaves_emcl_out(checkpoint, validation_folder):
    """Ten clips and a random model: nothing can be beyond chance."""
    result = run(
        "--model", checkpoint, "--data", validation_folder, *SMALL_GRID, "--mode", "channel", "--only-if-significant"
    )
    assert result.exit_code == 0, result.output
    assert "chosen: without EMCL" in result.output
    assert load_checkpoint(checkpoint).config.emcl.beta == 0


def test_what_cannot_be_written_is_told_before_the_work(checkpoint, validation_folder, tmp_path):
    for arguments, message in (
        (("--model", "demo"), "pass --output"),
        (("--model", "ViT-B-32", "--pretrained", "openai"), "pass --output"),
        (("--model", checkpoint, "--output", checkpoint), "exists already"),
        (("--model", checkpoint, "--output", tmp_path / "new.v2"), "NEW.safetensors"),
    ):
        result = run(*arguments, "--data", validation_folder)
        assert message in str(result.exception)
    result = run("--model", checkpoint, "--data", validation_folder, "--split", "test")
    assert isinstance(result.exception, TestSplitError)
    for options, message in (
        (("--beta", "much"), "--beta is 'much'"),
        (("--bases", "8.5"), "--bases is '8.5'"),
        (("--candidates", "0"), "candidates.0: Input should be greater than 0"),
        (("--sigma", "0"), "sigma: Input should be greater than 0"),
    ):
        result = run("--model", checkpoint, "--data", validation_folder, *options)
        assert message in str(result.exception)
        assert type(result.exception) is ValueError


def test_a_checkpoint_keeps_its_precision(tmp_path, tiny_encoder):
    for dtype in ("fp16", "fp32"):
        path = save_checkpoint(tiny_encoder.net, tmp_path / f"{dtype}.safetensors", dtype=dtype)
        assert stored_dtype(path) == dtype


def test_settings_that_need_another_state_cannot_be_slipped_in(checkpoint):
    before = checkpoint.with_suffix(".json").read_bytes()
    for changes in ({"mode": "reference"}, {"num_bases": 3}, {"seed": 9}):
        with pytest.raises(CheckpointError, match=next(iter(changes))):
            rewrite_settings(
                checkpoint, emcl=EMCLConfig().model_copy(update=changes), search=SearchConfig(), metadata={}
            )
    assert checkpoint.with_suffix(".json").read_bytes() == before


# Who reads it.


def test_the_service_takes_the_checkpoints_number_of_candidates(checkpoint, clip_store):
    from service.errors import Unprocessable
    from service.search.engine import build_engine
    from service.search.values import Ranking, SearchQuery
    from service.settings import Settings

    found = load_checkpoint(checkpoint).config
    rewrite_settings(checkpoint, emcl=found.emcl, search=SearchConfig(candidates=4), metadata={})
    settings = Settings(store=clip_store / "store", model=str(checkpoint), device="cpu")
    engine = build_engine(settings)
    try:
        query = SearchQuery(text="a red circle", ranking=Ranking(k=4))
        engine.limits.check_search(query)
        own = engine.search([query])[0].hits
        asked = SearchQuery(text="a red circle", ranking=Ranking(k=4, candidates=4))
        assert own == engine.search([asked])[0].hits
        wide = SearchQuery(text="a red circle", ranking=Ranking(k=6, candidates=6))
        assert len(engine.search([wide])[0].hits) == 6
        with pytest.raises(Unprocessable, match="k=5"):
            engine.limits.check_search(SearchQuery(text="a", ranking=Ranking(k=5)))
    finally:
        engine.close()


def test_a_checkpoint_cannot_ask_for_more_candidates_than_the_settings_let_it():
    from service.search.values import QueryLimits, Ranking
    from service.settings import Settings

    limits = QueryLimits.from_settings(Settings(max_candidates=50), default_candidates=100)
    assert limits.candidates_of(Ranking()) == 50
    assert limits.candidates_of(Ranking(candidates=20)) == 20
