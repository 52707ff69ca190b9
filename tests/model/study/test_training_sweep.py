"""``emcl study sweep``: one training for each value and seed, continued where it is there already."""

import json

import pytest
import yaml
from training_support import tiny, tiny_settings
from typer.testing import CliRunner

from model.cli import app
from model.config import load_mapping
from model.study.training_sweep import TrainedPoint, plan, table


def test_each_point_is_the_configuration_with_one_setting_changed():
    config = tiny(emcl_ramp_steps=3)
    points = plan(config, {"beta": (0.0, 3.0), "bases": (2,)})
    assert list(points) == ["without EMCL", "beta 0.0", "beta 3.0", "bases 2"]
    assert (points["without EMCL"].joint_emcl, points["without EMCL"].emcl_ramp_steps) == (False, 0)
    changed = config.model.emcl.model_copy(update={"beta": 3.0})
    assert points["beta 3.0"].model.emcl == changed
    assert points["beta 3.0"].joint_emcl
    assert points["bases 2"].model.emcl.beta == config.model.emcl.beta
    with pytest.raises(ValueError, match="frames cannot be varied"):
        plan(config, {"frames": (2,)})
    with pytest.raises(ValueError, match="nothing is varied"):
        plan(config, {})
    with pytest.raises(ValueError, match="no validation clips"):
        plan(tiny(data={"kind": "synthetic", "validation_clips": 0}), {"beta": (1.0,)})
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        plan(config, {"beta": (-1.0,)})


def test_the_command_trains_every_point_and_reads_what_is_there(tmp_path):
    file, output = tmp_path / "config.yaml", tmp_path / "runs"
    file.write_text(yaml.safe_dump(tiny_settings(steps=2, validate_every=2)), encoding="utf-8")
    command = ["study", "sweep", "--config", str(file), "--vary", "beta=0,3", "--seeds", "0,1", "--output", str(output)]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, said.output
    rows = [line for line in said.stdout.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows] == ["| training", "| without EMCL", "| beta 0.0", "| beta 3.0"]
    assert "Fewer than 3 seeds support no claim" in said.output
    assert len(list(output.glob("*/*/model.safetensors"))) == 6
    settings = load_mapping(output / "beta-3.0" / "seed-1" / "config.json")
    assert (settings["seed"], settings["model"]["emcl"]["seed"], settings["model"]["emcl"]["beta"]) == (1, 1, 3.0)
    log = (output / "without-EMCL" / "seed-0" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    (found,) = [line["validation"] for line in map(json.loads, log) if "validation" in line]
    again = CliRunner().invoke(app, command)
    assert [line for line in again.stdout.splitlines() if line.startswith("| ")] == rows
    other = CliRunner().invoke(app, [*command[:5], "bases=2", *command[6:7], "0", *command[8:]])
    assert f"{found['text_to_video']['R@1']:.1f} |" in other.output


def test_strength_zero_trains_the_features_of_training_without_a_pass(tmp_path):
    """The state moves, the correction is nothing: the same validation to the last digit."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(tiny_settings(steps=3, validate_every=3)), encoding="utf-8")
    command = ["study", "sweep", "--config", str(file), "--vary", "beta=0", "--seeds", "0"]
    said = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "runs")]).stdout
    rows = [line.split(" | ") for line in said.splitlines() if line.startswith(("| without", "| beta"))]
    assert rows[0][1] == rows[1][1]
    assert rows[1][2] == "+0.0"


def test_differences_are_those_of_the_same_seed():
    without = TrainedPoint(name="without EMCL", scores=[(10.0, 20.0), (30.0, 20.0), (20.0, 20.0)])
    joint = TrainedPoint(name="beta 1", scores=[(11.0, 19.0), (31.0, 19.0), (21.0, 19.0)])
    lines = table([without, joint], [0, 1, 2]).splitlines()
    assert lines[2] == "| without EMCL | 20.0 ± 10.0 | – | 20.0 ± 0.0 | – |"
    assert lines[3] == "| beta 1 | 21.0 ± 10.0 | +1.0 ± 0.0 | 19.0 ± 0.0 | -1.0 ± 0.0 |"
    assert "support no claim" not in lines[-1]
