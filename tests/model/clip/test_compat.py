"""The torchvision repair: works on an install without compiled operators, and does nothing anywhere else.

Each case runs in its own interpreter, because imports and operator declarations cannot be undone.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# What torchvision's own __init__ does when its compiled library belongs to another torch: a submodule comes in, then
# the registration of a fake kernel fails because the operator was never defined.
BROKEN = """
import builtins
builtins.imports = getattr(builtins, "imports", 0) + 1
from torchvision import extension
import torch

@torch.library.register_fake("torchvision::nms")
def meta_nms(dets, scores, iou_threshold):
    return dets.new_empty(0, dtype=torch.long)
"""


def run(folder: Path, torchvision: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` where ``import torchvision`` finds the given source."""
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(torchvision)
    (package / "extension.py").write_text("loaded = True\n")
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )


def test_open_clip_imports_on_this_install():
    from model.clip.compat import import_open_clip

    assert import_open_clip().__version__ == "3.3.0"
    assert import_open_clip() is sys.modules["open_clip"]


def test_missing_operators_are_declared_and_the_import_repeated(tmp_path):
    code = """
import builtins, sys
from model.clip import compat
compat._import_torchvision()
import gc, torch
gc.collect()
schema = "torchvision::{}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
assert str(torch.ops.torchvision.nms.default._schema) == schema.format("nms")
assert str(torch.ops.torchvision.qnms.default._schema) == schema.format("qnms")
assert builtins.imports == 2, builtins.imports
assert sys.modules["torchvision"].extension is sys.modules["torchvision.extension"]
compat._import_torchvision()
assert builtins.imports == 2, "a second call imports nothing"
"""
    result = run(tmp_path, BROKEN, code)
    assert result.returncode == 0, result.stderr


def test_healthy_torchvision_is_left_alone(tmp_path):
    code = """
import builtins, sys
from model.clip import compat
compat._import_torchvision()
assert builtins.imports == 1
assert compat._declared is None
assert "torch" not in sys.modules, "nothing of torch is needed where nothing is repaired"
"""
    healthy = 'import builtins\nbuiltins.imports = getattr(builtins, "imports", 0) + 1\n'
    result = run(tmp_path, healthy, code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            'raise RuntimeError("operator torchvision::roi_align does not exist")',
            "RuntimeError: operator torchvision::roi",
        ),
        ('raise RuntimeError("CUDA driver is too old")', "RuntimeError: CUDA driver is too old"),
        ('raise ImportError("libjpeg.so.8: cannot open shared object file")', "ImportError: libjpeg.so.8"),
    ],
)
def test_every_other_error_is_passed_on(tmp_path, source, expected):
    result = run(tmp_path, source, "from model.clip import compat; compat.import_open_clip()")
    assert result.returncode == 1
    assert expected in result.stderr
    assert "During handling" not in result.stderr
