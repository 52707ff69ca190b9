"""Importing open_clip on a torchvision whose compiled operators do not match torch.

torchvision's Python files register fake kernels for ``torchvision::nms`` when they are imported. If its compiled
library was built for another torch (as the wheel of one index beside the torch of another), that operator does not
exist and the import dies, although nothing that open_clip uses of torchvision is compiled. Declaring the schemas is
enough to let it pass. A torchvision that imports is left alone; every other error is passed on.
"""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.library import Library

logger = logging.getLogger(__name__)

_MISSING_OPERATOR = "operator torchvision::nms does not exist"
_SCHEMAS = tuple(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms"))

_lock = threading.Lock()
# torch forgets the operators of a library that is collected, so this one lives as long as the process.
_declared: Library | None = None


def import_open_clip() -> ModuleType:
    """Return the module ``open_clip``, with a usable torchvision imported before it.

    Use this instead of ``import open_clip`` everywhere. Raises whatever the imports raise, but for the
    one error that is repaired here: ``RuntimeError`` naming the missing ``torchvision::nms``.
    """
    with _lock:
        _import_torchvision()
        return importlib.import_module("open_clip")


def _import_torchvision() -> None:
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if _MISSING_OPERATOR not in str(error):
            raise
        logger.debug("torchvision has no compiled operators for this torch (%s); declaring their schemas", error)
        _forget("torchvision")
        _declare_schemas()
        importlib.import_module("torchvision")


def _forget(package: str) -> None:
    """Drop the half-imported package and its submodules, so that the next import starts over."""
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]


def _declare_schemas() -> None:
    global _declared
    from torch.library import Library

    _declared = Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        _declared.define(schema)  # type: ignore[no-untyped-call]
