"""Checkpoints of others, imported with settings that fit the nets of ``import_support``."""

from pathlib import Path

from model.checkpoint import load_checkpoint
from model.importing.convert import import_checkpoint
from model.options import ImportOptions

FITTING = {"max_words": 8, "max_frames": 6}


def convert(source: Path, **options):
    """Import a checkpoint beside itself: the net that was read back, and the report."""
    report = import_checkpoint(source, source.parent / "imported.safetensors", ImportOptions(**{**FITTING, **options}))
    return load_checkpoint(report.path), report
