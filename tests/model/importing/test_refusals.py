"""Checkpoints of others that cannot be imported: why is explained, no code is run, no source is overwritten."""

from pathlib import Path

import pytest
import torch
from import_support import FITTING, PlainClip4Clip, convert, make_clip4clip, save

from model.clip.weights import WeightsError
from model.importing.convert import ImportingError, import_checkpoint
from model.options import ImportOptions


@pytest.fixture(params=["meanP", "seqLSTM", "seqTransf"])
def clip4clip(request) -> PlainClip4Clip:
    return make_clip4clip(request.param)


def test_unmatched_names_on_both_sides_are_refused_or_listed(tmp_path):
    state = make_clip4clip("seqTransf").state_dict()
    del state["transformerClip.resblocks.1.ln_2.bias"], state["clip.ln_final.bias"]
    state["clip.visual.prompt"] = state["weight_fc.0.weight"] = torch.ones(2)
    source = save(state, tmp_path)
    strangers, lacking = (
        ["clip.visual.prompt", "weight_fc.0.weight"],
        ["clip.model.ln_final.bias", "temporal.blocks.resblocks.1.ln_2.bias"],
    )
    with pytest.raises(ImportingError) as caught:
        convert(source, kind="emcl-net")
    assert all(name in str(caught.value) for name in [*strangers, *lacking, "--allow-unmatched"])
    assert not (tmp_path / "imported.safetensors").exists()
    _, report = convert(source, kind="emcl-net", allow_unmatched=True)
    assert (report.unmatched, report.unfilled) == (strangers, lacking)
    assert all(name in report.text() for name in [*strangers, *lacking])
    assert convert(source, kind="emcl-net", allow_unmatched=True)[1].fingerprint == report.fingerprint


def test_names_of_plain_clip_are_reported_as_the_file_has_them(tmp_path):
    state = {**make_clip4clip("meanP").clip.state_dict(), "transformerClip.resblocks.0.ln_1.bias": torch.ones(2)}
    with pytest.raises(ImportingError, match=r"1 of its tensors have no place here: transformerClip\.resblocks\.0"):
        convert(save(state, tmp_path))


def without(name: str):
    return lambda state: {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("head", "change", "options", "message"),
    [
        ("seqTransf", dict, {}, "EMCL-Net or of CLIP4Clip: .* give --kind emcl-net or --kind clip4clip"),
        ("meanP", dict, {"kind": "clip"}, r"not of kind clip: its names start with 'clip\.'"),
        ("seqTransf", lambda state: {"emcl.state": torch.ones(1)}, {}, "checkpoint of this program already"),
        (
            "meanP",
            lambda state: {"text_model.x": torch.ones(2)},
            {},
            "none of EMCL-Net, CLIP4Clip, CLIP: .*text_model.x",
        ),
        ("meanP", without("clip.visual.proj"), {"kind": "emcl-net"}, r"none of EMCL-Net.*visual\.proj not found"),
        ("meanP", dict, {"kind": "emcl-net", "max_words": 32}, "--max-words is 32, but the text tower has 20"),
        ("seqTransf", dict, {"kind": "emcl-net", "max_frames": 64}, "--max-frames is 64, but there are 20"),
        (
            "meanP",
            dict,
            {"kind": "emcl-net", "text_head_width": 50},
            "128 channels, which heads of 50 .*--text-head-width",
        ),
        (
            "meanP",
            lambda state: {**state, "clip.visual.positional_embedding": torch.ones(4, 128)},
            {"kind": "clip4clip"},
            "3 patch positions, expected a square",
        ),
        (
            "meanP",
            lambda state: {**state, "clip.visual.conv2.weight": torch.ones(4, 3, 3, 16, 16)},
            {"kind": "clip4clip"},
            "3d patches",
        ),
        (
            "meanP",
            lambda state: {**state, "clip.ln_final.bias": torch.ones(7)},
            {"kind": "clip4clip", "allow_unmatched": True},
            r"1 of another shape: .*ln_final.bias \(got \(7,\), expected \(128,\)",
        ),
        (
            "meanP",
            lambda state: {**state, "clip.ln_final.bias": torch.ones(128, dtype=torch.int8)},
            {"kind": "clip4clip"},
            "ln_final.bias as torch.int8: quantised",
        ),
    ],
    ids=lambda value: None if callable(value) or isinstance(value, dict) else str(value)[:24],
)
def test_what_cannot_be_imported_is_explained(head, change, options, message, tmp_path):
    source = save(change(make_clip4clip(head).state_dict()), tmp_path)
    with pytest.raises(WeightsError, match=message):
        convert(source, **options)
    assert not (tmp_path / "imported.safetensors").exists()


class Payload:
    """Unpickling this makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.mkdir, (self.target,)


def test_files_with_code_are_refused_and_not_run(tmp_path):
    source = save({"model": make_clip4clip("meanP").state_dict(), "args": Payload(tmp_path / "made")}, tmp_path)
    with pytest.raises(WeightsError, match=r"cannot be read .*Python objects of \S+, whose code is never run"):
        convert(source)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("keep", [0, 10, 5000, -100])
def test_truncated_files_are_refused(keep, tmp_path):
    source = save(make_clip4clip("meanP").state_dict(), tmp_path)
    content = source.read_bytes()
    source.write_bytes(content[:keep])
    with pytest.raises(WeightsError, match="cannot be read as a weights file") as caught:
        convert(source, kind="clip4clip")
    assert "weights_only" not in str(caught.value)  # torch's own advice is to unpickle the file all the same
    with pytest.raises(FileNotFoundError, match="does not exist"):
        convert(tmp_path / "absent.pt")


@pytest.mark.parametrize("output", ["clip.v2.safetensors", "clip.v2"])
def test_the_source_is_never_overwritten(output, tmp_path):
    source = save(make_clip4clip("meanP").clip.state_dict(), tmp_path, "clip.v2.safetensors")
    before = source.read_bytes()
    with pytest.raises(ImportingError, match="would overwrite the source"):
        import_checkpoint(source, tmp_path / output, ImportOptions(**FITTING))
    assert source.read_bytes() == before
