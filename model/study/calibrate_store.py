"""Writing a choice into a checkpoint, and saying what it means for indexes that were made with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.checkpoint import read_metadata, rewrite_settings, save_checkpoint, stored_dtype
from model.config import EMCLConfig, SearchConfig
from model.encoder import DEMO_CHECKPOINT, Encoder
from model.study.per_video_ranks import keeps_state, variant


def check_target(model: str, output: Path | None, *, dry_run: bool) -> None:
    """Find out before the work whether the choice can be written. Raises ``ValueError``, ``FileExistsError``."""
    if dry_run:
        return
    if output is None:
        if model == "demo" or not _is_checkpoint(model):
            raise ValueError(
                f"--model {model} is no checkpoint of yours that a choice could be written into; pass --output "
                "NEW.safetensors for a new one, or --dry-run"
            )
        return
    if output.suffix != ".safetensors":
        raise ValueError(f"--output is {output}, expected the name of a checkpoint: NEW.safetensors")
    for file in (output.with_suffix(".safetensors"), output.with_suffix(".json")):
        if file.exists():
            raise FileExistsError(f"--output {file} exists already; name another, or pass it as --model to change it")


def store_choice(
    encoder: Encoder,
    model: str,
    output: Path | None,
    *,
    emcl: EMCLConfig,
    search: SearchConfig,
    record: dict[str, Any],
) -> str:
    """Write settings and record into the checkpoint, or into a new one; return what to tell the user.

    Strength, kernel width and iterations are only in NAME.json, which is replaced atomically. Another mode or number
    of bases has another state, which is saved with the weights, and another fingerprint.
    """
    source = DEMO_CHECKPOINT if model == "demo" else Path(model) if _is_checkpoint(model) else None
    metadata = {**(read_metadata(source) if source else {}), "calibration": record}
    same_model = keeps_state(encoder.config.emcl, emcl)
    if output is None and same_model and source is not None:
        path = rewrite_settings(source, emcl=emcl, search=search, metadata=metadata)
    else:
        changed = variant(encoder, emcl).net
        changed.config = encoder.config.model_copy(update={"emcl": emcl, "search": search})
        target = output or source
        assert target is not None  # check_target refused it
        path = save_checkpoint(changed, target, metadata=metadata, dtype=stored_dtype(source) if source else "fp32")
    return f"written: {path.with_suffix('.json')}\n{_consequence(path, same_model)}"


def _consequence(path: Path, same_model: bool) -> str:
    if same_model:
        return (
            "The fingerprint stays: indexes of this model go on working. Refit their frozen map with "
            f"`emcl index rebuild --store STORE --model {path}`, and restart services that have it loaded."
        )
    return (
        "Mode, number of bases or seed changed, and with them EMCL's state and the fingerprint: indexes of the old "
        f"checkpoint are refused now. Build them again with `emcl index build PATH... --store NEW --model {path}`."
    )


def _is_checkpoint(model: str) -> bool:
    return model.endswith(".safetensors") or Path(model).with_suffix(".safetensors").is_file()
