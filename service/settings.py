"""Settings of the service: the only place that reads the environment.

Each field is at once an option of ``emcl serve`` (``--upload-max-bytes``) and an environment variable
(``EMCL_UPLOAD_MAX_BYTES``); an option wins over the environment, the environment over the default. Unknown options are
errors. ``python -m service.settings`` prints the table that the README holds.
"""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ByteSize, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MEBIBYTE = 1024**2
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")


class Settings(BaseSettings):
    """All settings, checked when made. Sizes take units: ``100MiB``, ``2GB`` or a number of bytes."""

    model_config = SettingsConfigDict(env_prefix="EMCL_", frozen=True, extra="forbid")

    store: Path = Field(Path("var/store"), description="Folder of the index (made by `emcl index build`).")
    model: str | None = Field(
        None,
        description="`demo`, a checkpoint's path or an open_clip name. Default: the model that the index names.",
    )
    pretrained: str | None = Field(None, description="Pretrained tag or weights file, for an open_clip name.")
    device: str = Field("auto", description="Where the model runs: `auto`, `cpu`, `cuda` or `cuda:N`.")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="Precision of the CLIP towers.")
    threads: int = Field(1, ge=1, le=256, description="Threads of PyTorch for one batch.")
    faiss_threads: int = Field(1, ge=1, le=256, description="Threads of FAISS for one batch.")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    allow_public: bool = Field(
        False,
        description="Listen on an address other than loopback. There are no keys: everyone who reaches the port may "
        "search, watch every indexed video and upload.",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Host names to answer for, comma-separated. Default: loopback names, or any name with a public "
        "address.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe log line shown.")

    max_batch: int = Field(32, ge=1, le=1024, description="Most queries that are computed together.")
    max_wait_ms: float = Field(2.0, ge=0, le=1000, description="How long the first query of a batch waits for others.")
    max_queue: int = Field(256, ge=1, le=100_000, description="Most queries that wait; more are answered with 503.")
    cache_entries: int = Field(10_000, ge=0, description="Text embeddings kept in memory; 0 keeps none.")

    max_body_bytes: ByteSize = Field(ByteSize(MEBIBYTE), gt=0, description="Largest JSON body.")
    max_texts: int = Field(64, ge=1, le=10_000, description="Most texts in one request.")
    max_text_chars: int = Field(2000, ge=1, le=100_000, description="Longest text, in characters.")
    max_candidates: int = Field(1000, ge=1, le=100_000, description="Most candidates that a query may ask for.")

    upload_max_bytes: ByteSize = Field(ByteSize(100 * MEBIBYTE), gt=0, description="Largest uploaded video.")
    upload_max_seconds: float = Field(3600.0, gt=0, description="Longest uploaded video.")
    upload_max_pixels: int = Field(4096 * 2176, gt=0, description="Largest frame of an upload, width times height.")
    upload_timeout_seconds: float = Field(300.0, gt=0, description="Longest time that an upload may take to arrive.")
    upload_slots: int = Field(4, ge=1, le=256, description="Uploads under way at once; more are answered with 503.")
    upload_workers: int = Field(1, ge=1, le=64, description="Uploads that are decoded at once.")
    upload_folder: Path | None = Field(
        None, description="Where an upload lies, nameless, while it is decoded. Default: the system's temporary folder."
    )
    decode_wall_seconds: float = Field(60.0, gt=0, description="Time after which the decoding of an upload is killed.")
    decode_cpu_seconds: int = Field(60, ge=1, description="Processor time that the decoding of an upload may use.")
    decode_memory_bytes: ByteSize = Field(
        ByteSize(2048 * MEBIBYTE),
        ge=256 * MEBIBYTE,
        description="Memory for the decoding of an upload, besides it.",
    )

    thumbnail_width: int = Field(320, ge=16, le=1920, description="Width of thumbnails, in pixels.")
    thumbnail_cache_bytes: ByteSize = Field(ByteSize(32 * MEBIBYTE), ge=0, description="Thumbnails kept in memory.")

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _public_is_a_decision(self) -> Settings:
        if not self.is_loopback and not self.allow_public:
            raise ValueError(
                f"host {self.host} can be reached from other machines, and there are no keys: everyone who reaches "
                "the port may search, watch every indexed video and upload; use --host 127.0.0.1, or pass "
                "--allow-public (EMCL_ALLOW_PUBLIC=1) behind a proxy that lets in only whom you trust"
            )
        return self

    @model_validator(mode="after")
    def _a_request_fits_the_queue(self) -> Settings:
        if self.max_texts > self.max_queue:
            raise ValueError(
                f"--max-texts is {self.max_texts}, but only {self.max_queue} queries may wait; raise --max-queue"
            )
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach ``host``."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def answered_hosts(self) -> tuple[str, ...] | None:
        """Host names to answer for, without ports; ``None`` for any."""
        if self.allowed_hosts:
            return self.allowed_hosts
        return LOOPBACK_HOSTS if self.is_loopback else None


def load_settings(options: dict[str, Any] | None = None) -> Settings:
    """Settings from options (those that are ``None`` count as not given), then the environment, then the defaults.

    Raises ``ValueError`` that names every setting that is wrong, the value that it got and what it takes.
    """
    try:
        return Settings(**{name: value for name, value in (options or {}).items() if value is not None})
    except ValidationError as error:
        raise ValueError("; ".join(_describe(problem) for problem in error.errors())) from error


def _describe(problem: Any) -> str:
    if not problem["loc"]:
        return str(problem["msg"]).removeprefix("Value error, ")
    name = str(problem["loc"][0])
    return f"{option_name(name)} ({variable_name(name)}): {problem['msg']}, got {problem['input']!r}"


def option_name(field: str) -> str:
    """The command line option of a setting: ``max_batch`` is ``--max-batch``."""
    return "--" + field.replace("_", "-")


def variable_name(field: str) -> str:
    """The environment variable of a setting: ``max_batch`` is ``EMCL_MAX_BATCH``."""
    return f"EMCL_{field.upper()}"


def default_text(field: str) -> str:
    """The default of a setting as a person would write it; empty if it has none."""
    default = Settings.model_fields[field].default
    if isinstance(default, ByteSize):
        return default.human_readable().replace(".0", "")
    if default is None or default == ():
        return ""
    return str(default).lower() if isinstance(default, bool) else str(default)


def settings_table() -> str:
    """The Markdown table of all settings, one row per setting, as the README shows it."""
    rows = ["| option | environment | default | what it does |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = f"`{default_text(name)}`" if default_text(name) else ""
        rows.append(f"| `{option_name(name)}` | `{variable_name(name)}` | {default} | {field.description} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.stdout.write(settings_table() + "\n")
