"""TorchScript archives: their tensors are read, their program never runs."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from model.clip.pretrained import ClipError, describe_clip
from model.clip.weights import WeightsError, is_torchscript, read_weights
from model.config import ClipConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.register_buffer("size", torch.tensor(224))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Inner(), nn.Linear(4, 2).half())
        self.shared = nn.Parameter(torch.arange(6.0).reshape(2, 3).t())  # not contiguous
        self.sizes = [1, 2]
        self.name = "outer"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[0](x) + self.sizes[0]


def archive(path: Path) -> nn.Module:
    torch.manual_seed(0)
    module = torch.jit.script(Outer())
    torch.jit.save(module, str(path))
    return module


def test_tensors_are_those_of_the_state_dict(tmp_path, monkeypatch):
    module = archive(tmp_path / "a.pt")
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("the archive's program was loaded"))
    assert is_torchscript(tmp_path / "a.pt")
    read, expected = read_weights(tmp_path / "a.pt"), module.state_dict()
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        assert read[name].dtype == tensor.dtype
        torch.testing.assert_close(read[name], tensor, rtol=0, atol=0)


class ProgramAtLoading(nn.Module):
    """Its ``__setstate__`` is part of the archive's program and runs in ``torch.jit.load``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.weight = state[0]
        self.training = state[1]
        raise RuntimeError("the program ran")


def test_the_program_of_an_archive_never_runs(tmp_path):
    torch.jit.save(torch.jit.script(ProgramAtLoading()), str(tmp_path / "a.pt"))
    with pytest.raises(Exception, match="the program ran"):
        torch.jit.load(str(tmp_path / "a.pt"))
    with pytest.raises(WeightsError, match="a module holds a tuple"):
        read_weights(tmp_path / "a.pt")


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def repacked(source: Path, target: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("/data.pkl") else old.read(name))


def test_a_pickle_with_other_classes_is_refused(tmp_path):
    archive(tmp_path / "a.pt")
    repacked(tmp_path / "a.pt", tmp_path / "b.pt", pickle.dumps(Touch(tmp_path / "ran"), protocol=2))
    with pytest.raises(WeightsError, match="whose code is never run"):
        read_weights(tmp_path / "b.pt")
    assert not (tmp_path / "ran").exists()


def test_a_compressed_or_cut_archive_is_refused(tmp_path):
    archive(tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as whole:
        pickled = whole.read(next(name for name in whole.namelist() if name.endswith("/data.pkl")))
    repacked(tmp_path / "a.pt", tmp_path / "b.pt", pickled, zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="compressed"):
        read_weights(tmp_path / "b.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "c.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name)[: -4 if "/data/" in name else None])
    with pytest.raises(WeightsError, match=r"elements, expected|buffer"):
        read_weights(tmp_path / "c.pt")


@pytest.mark.parametrize(
    ("part", "key", "name"),
    [
        ("vision_cfg", "timm_model_name", "hf-hub:someone/model"),
        ("vision_cfg", "timm_model_name", "local-dir:/tmp/model"),
        ("vision_cfg", "timm_model_name", "someone/model"),
        ("vision_cfg", "timm_model_name", "nonsense"),
        ("text_cfg", "hf_model_name", "someone/model"),
        ("text_cfg", "hf_model_name", "/tmp/model"),
        ("text_cfg", "hf_tokenizer_name", "../model"),
    ],
)
def test_model_dictionaries_name_only_known_towers(part, key, name):
    custom = {"embed_dim": 8, "vision_cfg": {"image_size": 32}, "text_cfg": {"width": 8}}
    custom[part] = {**custom[part], key: name}
    with pytest.raises(ClipError, match="not followed"):
        describe_clip(ClipConfig(architecture="ours", custom=custom))
