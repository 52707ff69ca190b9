"""Paths that clients name: only inside the folders that the operator allowed, whatever links and dots say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from service.errors import Unprocessable

M = TypeVar("M", bound=BaseModel)

_FORBIDDEN = re.compile(r"[\x00-\x1f*?\[\]]|://")
_LONGEST = 4096

# What open_clip would fetch from elsewhere than its own table of weights.
_FETCHING_KEYS = frozenset({"hf_model_name", "hf_tokenizer_name"})
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class AllowedFolders:
    """The folders that jobs may read (``--jobs-inputs``)."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = [folder.resolve() for folder in folders]

    def find(self, name: str, *, field: str) -> Path:
        """The absolute path of a file or folder inside; a relative name is looked for in each folder in turn.

        Raises ``Unprocessable``, with the same words for what lies outside and what does not exist.
        """
        path = Path(name)
        if name and len(name) <= _LONGEST and not _FORBIDDEN.search(name) and ".." not in path.parts:
            for folder in self._folders:
                try:
                    found = (folder / path).resolve(strict=True)
                except (OSError, RuntimeError, ValueError):  # not there or not allowed, a loop of links, no name at all
                    continue
                if found.is_relative_to(folder):
                    return found
        raise Unprocessable(
            f"{field}: {name[:200]!r} is no file or folder that jobs may read",
            expected="a path inside a folder of --jobs-inputs (EMCL_JOBS_INPUTS), without `..`, wildcards and URLs"
            if self._folders
            else "no path, because --jobs-inputs (EMCL_JOBS_INPUTS) names no folder",
            next_step="correct the path, or have the operator add its folder to --jobs-inputs",
        )

    def confine(self, value: M, *, field: str) -> M:
        """A configuration with every path in it, however deep, found inside. Raises ``Unprocessable``."""
        changes: dict[str, Any] = {}
        for name in type(value).model_fields:
            part = getattr(value, name)
            if isinstance(part, Path):
                changes[name] = self.find(str(part), field=f"{field}.{name}")
            elif isinstance(part, BaseModel):
                changes[name] = self.confine(part, field=f"{field}.{name}")
        return value.model_copy(update=changes)

    def confine_clip(self, value: Any, *, field: str) -> Any:
        """A ``ClipConfig`` whose weights are a tag of open_clip's table or a file inside. Raises ``Unprocessable``."""
        if _FETCHING_KEYS & _keys(value.custom) or not _PLAIN_NAME.fullmatch(value.architecture):
            raise Unprocessable(
                f"{field}: this architecture is fetched by its name",
                expected="a name of open_clip's own table, or `custom` without hf_model_name and hf_tokenizer_name",
                next_step="describe the towers in `custom`, or name an architecture that open_clip lists",
            )
        if value.pretrained is None or _is_tag(value.architecture, value.pretrained):
            return value
        return value.model_copy(update={"pretrained": str(self.find(value.pretrained, field=f"{field}.pretrained"))})


def _is_tag(architecture: str, name: str) -> bool:
    from model.clip.compat import import_open_clip

    return name in import_open_clip().list_pretrained_tags_by_model(architecture)


def _keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {key for part in value.values() for key in _keys(part)}
    return {key for part in value for key in _keys(part)} if isinstance(value, list) else set()
