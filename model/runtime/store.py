"""Exports on disk: which files belong to which checkpoint, whole or not, and what the guard measured.

A folder holds ``FINGERPRINT-KIND.json`` (the manifest) and the model files that it names by size and SHA-256. Files
carry a part of their checksum in their names and never change; the manifest is swapped atomically and written last, so
a reader sees an export wholly or not at all. ``FINGERPRINT`` is the checkpoint's, its first 16 digits.

    ValueError
    └── ExportError     an export cannot be made or used; the message says what to do
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from pydantic import Field, ValidationError

from model.config import Config, problems_of
from model.durable import sha256_of_file, sync_file, sync_folder, write_atomically
from model.runtime.choose import ExportKind, Offer, Tower, TowerKind

EXPORT_FORMAT = 1
DEFAULT_FOLDER = Path("var/exports")
"""Exports of models without a user's checkpoint: demo, open_clip names."""

_SHORT = 16


class ExportError(ValueError):
    """An export cannot be made or used; the message says what to do."""


class Limits(Config):
    """What a runtime must reach. ``recall_loss``: points of R@1, R@5 or R@10 that may be lost."""

    text_cosine: float
    image_cosine: float
    top10_overlap: float
    recall_loss: float


class Agreement(Config):
    """Cosine of the same input's two features: the worst of all, and the mean."""

    least: float
    mean: float


class Speed(Config):
    """Median time of a sample, on the machine that exported, with its threads: an impression, not a benchmark."""

    text_ms: float
    image_ms: float


class GuardReport(Config):
    """What the guard measured. ``failures`` is empty where the runtime passed; ``recall`` is by cut-off, in percent."""

    source: str
    videos: int
    frames: int
    texts: int
    text: Agreement
    image: Agreement
    top10_overlap: float
    recall_plain: dict[int, float]
    recall_fast: dict[int, float]
    speed_plain: Speed
    speed_fast: Speed
    limits: Limits
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the runtime may be used."""
        return not self.failures

    def lines(self) -> list[str]:
        """The readable report."""
        recall = ", ".join(f"R@{k} {self.recall_plain[k]:.1f} → {self.recall_fast[k]:.1f}" for k in self.recall_plain)
        plain, fast = self.speed_plain, self.speed_fast
        return [
            f"compared with PyTorch in fp32 on {self.source}: {self.videos} videos, {self.frames} frames, "
            f"{self.texts} texts",
            f"  cosine of texts   {self.text.least:.5f} at worst, {self.text.mean:.5f} on average "
            f"(limit {self.limits.text_cosine})",
            f"  cosine of frames  {self.image.least:.5f} at worst, {self.image.mean:.5f} on average "
            f"(limit {self.limits.image_cosine})",
            f"  ten best videos   {100 * self.top10_overlap:.1f} % the same (limit "
            f"{100 * self.limits.top10_overlap:.0f} %)",
            f"  recall            {recall} (limit: {self.limits.recall_loss} points lost)",
            f"  time              text {plain.text_ms:.1f} → {fast.text_ms:.1f} ms, frame {plain.image_ms:.1f} → "
            f"{fast.image_ms:.1f} ms",
            "passed" if self.passed else f"REFUSED: {'; '.join(self.failures)}",
        ]


class ExportedFile(Config):
    """One model file of an export."""

    name: str = Field(pattern=r"^[\w.-]+\.onnx$")  # a file of this folder, wherever the manifest came from
    size_bytes: int
    sha256: str


class Export(Config):
    """A manifest. ``files`` is empty where the guard refused, and for ``torch-bf16``, which needs none."""

    format: int = EXPORT_FORMAT
    fingerprint: str = Field(pattern="^[0-9a-f]{64}$")
    kind: ExportKind
    created: str
    versions: dict[str, str]
    files: dict[Tower, ExportedFile] = Field(default_factory=dict)
    guard: GuardReport


class Fastest(Config):
    """What was measured on one processor: the time of each runtime that may be used, and the fastest for each tower.

    ``failures``: what the guard found wrong with the two together, where they are different ones; then the fastest that
    is good for both was taken.
    """

    format: int = EXPORT_FORMAT
    fingerprint: str = Field(pattern="^[0-9a-f]{64}$")
    processor: str
    created: str
    measured: dict[TowerKind, Speed]
    fastest: dict[Tower, TowerKind]
    failures: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The readable report."""
        rows = [
            f"  {kind:<11}{speed.text_ms:7.1f} ms a text{speed.image_ms:8.1f} ms a frame"
            for kind, speed in self.measured.items()
        ]
        texts, frames = self.fastest["text"], self.fastest["image"]
        return [f"on {self.processor}:", *rows, f"fastest: {texts} for texts, {frames} for frames"]


class ExportStore:
    """The exports of one checkpoint in one folder. ``model`` names the checkpoint in messages."""

    def __init__(self, folder: Path, fingerprint: str, *, model: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.model = model

    def path_of(self, kind: ExportKind) -> Path:
        """The manifest's path."""
        return self.folder / f"{self.fingerprint[:_SHORT]}-{kind}.json"

    def offer(self, kind: ExportKind) -> Offer:
        """What ``model.runtime.choose.choose`` asks: is there such an export, and may it be used? Checksums are left
        out.
        """
        try:
            export = self.read(kind)
        except FileNotFoundError:
            return Offer(exists=False, problem=f"no export in {self.folder}; make one: {self.command(kind)}")
        except ExportError as error:
            return Offer(exists=True, problem=str(error))
        if not export.guard.passed:
            refusal = f"the guard refused it ({'; '.join(export.guard.failures)})"
            return Offer(
                exists=True,
                problem=f"{refusal}; take another runtime, or judge it by your own data: "
                f"{self.command(kind)} --samples CAPTIONS.jsonl",
            )
        return Offer(exists=True)

    def command(self, kind: ExportKind) -> str:
        """The command that makes this export."""
        return f"emcl export --model {self.model} --runtime {kind}"

    def read(self, kind: ExportKind) -> Export:
        """Read a manifest. Raises ``FileNotFoundError``, or ``ExportError`` for a damaged or foreign one."""
        path = self.path_of(kind)
        text = path.read_bytes()
        try:
            export = Export.model_validate_json(text)
        except ValidationError as error:
            raise ExportError(
                f"{path} is damaged or of another release ({problems_of(error)}); export again: {self.command(kind)}"
            ) from error
        if export.format != EXPORT_FORMAT:
            raise ExportError(
                f"{path} has format {export.format}, this program reads {EXPORT_FORMAT}; export again: "
                f"{self.command(kind)}"
            )
        if (export.fingerprint, export.kind) != (self.fingerprint, kind):
            raise ExportError(
                f"{path} is the {export.kind} export of checkpoint {export.fingerprint[:12]}, expected {kind} of "
                f"{self.fingerprint[:12]}; export again: {self.command(kind)}"
            )
        for file in export.files.values():
            found = _size_of(self.folder / file.name)
            if found != file.size_bytes:
                raise ExportError(
                    f"{self.folder / file.name} has {found} bytes, its manifest says {file.size_bytes}; export again: "
                    f"{self.command(kind)}"
                )
        return export

    def path_of_fastest(self, processor: str) -> Path:
        """Where the measurement of a processor is."""
        return self.folder / f"{self.fingerprint[:_SHORT]}-fastest-{sha256(processor.encode()).hexdigest()[:8]}.json"

    def fastest_of(self, processor: str) -> dict[Tower, TowerKind] | None:
        """The fastest runtime of each tower on ``processor``; None where that was not measured, or cannot be read."""
        try:
            found = Fastest.model_validate_json(self.path_of_fastest(processor).read_bytes())
        except (OSError, ValidationError):
            return None  # it is measured again
        if (found.format, found.fingerprint, found.processor) != (EXPORT_FORMAT, self.fingerprint, processor):
            return None
        return found.fastest if found.fastest.keys() == {"text", "image"} else None

    def publish_fastest(self, found: Fastest) -> Path:
        """Keep a measurement. Returns its path."""
        path = self.path_of_fastest(found.processor)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (found.model_dump_json(indent=2) + "\n").encode())
        return path

    def verified_files(self, kind: ExportKind) -> dict[Tower, Path]:
        """Paths of the model files, each read through and compared with its checksum. Raises ``ExportError``."""
        try:
            export = self.read(kind)
        except FileNotFoundError as error:
            raise ExportError(f"{self.path_of(kind)} does not exist; export: {self.command(kind)}") from error
        for file in export.files.values():
            if sha256_of_file(self.folder / file.name) != file.sha256:
                raise ExportError(
                    f"{self.folder / file.name} does not match its checksum, it is damaged; export again: "
                    f"{self.command(kind)}"
                )
        return {tower: self.folder / file.name for tower, file in export.files.items()}

    def take(self, kind: ExportKind, tower: Tower, source: Path) -> ExportedFile:
        """Move a finished model file, of the same file system, to its place. Not in force before ``publish``."""
        digest = sha256_of_file(source)
        name = f"{self.fingerprint[:_SHORT]}-{kind}-{tower}-{digest[:8]}.onnx"
        size = source.stat().st_size
        sync_file(source)
        source.replace(self.folder / name)
        sync_folder(self.folder)
        return ExportedFile(name=name, size_bytes=size, sha256=digest)

    def publish(self, export: Export) -> Path:
        """Put an export in force; files of the one before it are removed. Returns the manifest's path.

        Which runtime is the fastest has to be measured again.
        """
        path = self.path_of(export.kind)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (export.model_dump_json(indent=2) + "\n").encode())
        kept = {file.name for file in export.files.values()}
        for old in self.folder.glob(f"{self.fingerprint[:_SHORT]}-{export.kind}-*.onnx"):
            # "onnx-*" also matches the files of "onnx-int8".
            if old.name not in kept and old.name.rsplit("-", 2)[0] == f"{self.fingerprint[:_SHORT]}-{export.kind}":
                old.unlink()
        for measured in self.folder.glob(f"{self.fingerprint[:_SHORT]}-fastest-*.json"):
            measured.unlink(missing_ok=True)
        return path


def default_folder(spec: str | None, *, is_checkpoint: bool) -> Path:
    """The default folder of a model's exports: ``NAME.exports`` beside a checkpoint, else ``var/exports``.

    ``is_checkpoint``: ``spec`` is a checkpoint's path. The demo model is installed
    read-only, so its exports go to ``var/exports``.
    """
    if spec is None or not is_checkpoint:
        return DEFAULT_FOLDER
    path = Path(spec)
    stem = path.with_suffix("") if path.suffix in (".safetensors", ".json") else path
    return stem.with_name(f"{stem.name}.exports")


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
