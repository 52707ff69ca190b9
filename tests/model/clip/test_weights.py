"""Weight files: damaged and hostile ones are refused with a reason, mismatches are listed."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from model.clip.weights import WeightsError, load_strictly, read_weights, tensor_digest


@pytest.fixture(params=["weights.safetensors", "weights.pt"])
def file(request, tmp_path) -> Path:
    path = tmp_path / request.param
    state = {"a": torch.arange(2000.0), "b": torch.ones(3, 4, dtype=torch.float16)}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def test_tensors_come_back_in_their_dtypes(file):
    state = read_weights(file)
    assert {name: tensor.dtype for name, tensor in state.items()} == {"a": torch.float32, "b": torch.float16}
    assert torch.equal(state["a"], torch.arange(2000.0))


@pytest.mark.parametrize("keep", [0, 1, 7, 100, 4000])
def test_truncated_file_is_refused(file, keep):
    os.truncate(file, keep)
    with pytest.raises(WeightsError, match=f"{file.name} cannot be read as a weights file .*fetch it again"):
        read_weights(file)


def test_text_is_no_weights_file(tmp_path):
    for name in ("notes.txt", "notes.safetensors", "notes.pt"):
        path = tmp_path / name
        path.write_text("these are not the weights you are looking for\n" * 10)
        with pytest.raises(WeightsError, match="cannot be read as a weights file"):
            read_weights(path)


class Payload:
    """Unpickling this runs a command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_pickled_code_is_not_run(tmp_path):
    path, target = tmp_path / "weights.pt", tmp_path / "owned"
    torch.save({"a": Payload(target)}, path)
    with pytest.raises(WeightsError, match="cannot be read as a weights file"):
        read_weights(path)
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "found"),
    [(torch.ones(3), "a Tensor"), ([torch.ones(3)], "a list"), ({"a": "b"}, "a mapping to str"), ({}, "to nothing")],
)
def test_other_content_is_named(tmp_path, content, found):
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=f"holds {found}|holds a mapping {found}"):
        read_weights(path)


def test_mismatch_leaves_the_module_unchanged():
    module = nn.Linear(3, 2)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(WeightsError, match=r"somewhere does not fit this model; 1 missing: bias"):
        load_strictly(module, {"weight": torch.zeros(2, 3)}, source="somewhere")
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_long_lists_of_names_are_cut():
    state = {f"name{number:02}": torch.zeros(1) for number in range(20)}
    with pytest.raises(WeightsError, match=r"20 unexpected: name00, .*name07 and 12 more"):
        load_strictly(nn.Module(), state, source="somewhere")


def test_digest_sees_values_and_shape_but_not_storage():
    tensor = torch.arange(6.0).view(2, 3)
    assert tensor_digest(tensor) == tensor_digest(tensor.half()) == tensor_digest(tensor.t().contiguous().t())
    assert tensor_digest(tensor) != tensor_digest(tensor.view(3, 2))
    assert tensor_digest(tensor) != tensor_digest(tensor + 1e-6)
    assert tensor_digest(tensor) != tensor_digest(tensor.long())
