"""Options of commands come from the fields of pydantic models, and from nowhere else."""

import subprocess
import sys
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from indexer.build.options import BuildOptions
from indexer.errors import SourceError
from indexer.store.config import Wishes
from model.cli_options import EncoderOptions, Only, from_models

seen = {}
app = typer.Typer()


@app.command()
@from_models
def command(
    encoding: Annotated[EncoderOptions, Only("device", model="another text")],
    wishes: Wishes,
    options: BuildOptions,
    name: str = "x",
) -> None:
    """A command with options of three models and one of its own."""
    seen.update(encoding=encoding, wishes=wishes, options=options, name=name)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def test_a_command_gets_its_models_filled():
    result = run("--index-memory", "1GiB", "--sampling", "keyframes", "--allow-protocol", "s3", "--partition", "2/3")
    assert result.exit_code == 0, result.output
    assert seen["wishes"].for_store() == {"index_memory": 1 << 30}
    assert seen["wishes"].for_sampling() == {"strategy": "keyframes"}
    assert seen["options"].protocols == {"s3"}
    assert (seen["options"].partition.number, seen["options"].partition.count) == (2, 3)
    assert seen["options"].timeout_seconds == 300
    assert seen["encoding"].model_dump(exclude_unset=True) == {"device": "auto"}


def test_a_command_can_be_called_from_python():
    command(prune=True, device="cpu", name="y")
    assert seen["options"].prune
    assert seen["encoding"].device == "cpu"
    assert seen["name"] == "y"


@pytest.mark.parametrize(
    ("option", "value"),
    [("--index-memory", "much"), ("--sample-fps", 0), ("--max-frames", 513), ("--workers", 0), ("--runtime", "fast")],
)
def test_what_a_model_refuses_is_wrong_usage(option, value):
    result = run(option, value)
    assert result.exit_code == 2
    assert option in result.output


def test_errors_with_advice_of_their_own_stay():
    with pytest.raises(SourceError, match="expected i/n"):
        command(partition="4/3")


def test_every_option_is_described_by_its_field():
    helped = " ".join(run("--help").output.split())
    fields = {**Wishes.model_fields, **BuildOptions.model_fields}
    assert all(field.description for field in (*fields.values(), *EncoderOptions.model_fields.values()))
    assert "another text" in helped
    assert "--precision" not in helped


def test_the_commands_load_nothing_heavy():
    script = "import sys, indexer.cli; print(*{'torch', 'faiss', 'numpy', 'av', 'pebble'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert found.stdout.split() == []
