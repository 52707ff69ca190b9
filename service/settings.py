"""Settings of the service: the only place where ``emcl serve`` reads the environment.

Each field is at once an option of ``emcl serve`` (``--upload-max-bytes``) and an environment variable
(``EMCL_UPLOAD_MAX_BYTES``); an option wins over the environment, the environment over the default. Unknown options are
errors. ``python -m service.settings`` prints the table of ``docs/settings.md``.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import re
import sys
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import ByteSize, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from model.cli_options import Given

MEBIBYTE = 1024**2
_SECRET_PREFIX = "whsec_"  # noqa: S105 - what secrets of Standard Webhooks begin with
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")


class Settings(BaseSettings):
    """All settings, checked when made. Sizes take units: ``100MiB``, ``2GB`` or a number of bytes."""

    model_config = SettingsConfigDict(env_prefix="EMCL_", frozen=True, extra="forbid", hide_input_in_errors=True)

    store: Path = Field(Path("var/store"), description="Folder of the index (made by `emcl index build`).")
    model: str | None = Field(
        None,
        description="`demo`, a checkpoint's path or an open_clip name. Default: the model that the index names.",
    )
    pretrained: str | None = Field(None, description="Pretrained tag or weights file, for an open_clip name.")
    device: str = Field("auto", description="Where the model runs: `auto`, `cpu`, `cuda` or `cuda:N`.")
    runtime: Literal["auto", "torch", "torch-compiled", "onnx", "onnx-int8"] = Field(
        "auto",
        description="What computes the CLIP towers; `auto`: for texts and frames each the fastest that ranks as fp32 "
        "does, measured at first use (docs/runtimes.md).",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Precision of the CLIP towers; `auto`: fp32 where the runtime leaves a choice."
    )
    exports: Path | None = Field(
        None, description="Folder of exports (made by `emcl export`). Default: beside the checkpoint, or `var/exports`."
    )
    threads: int = Field(1, ge=1, le=256, description="Threads of PyTorch for one batch.")
    faiss_threads: int = Field(1, ge=1, le=256, description="Threads of FAISS for one batch.")
    faiss_device: Literal["auto", "cpu", "gpu"] = Field(
        "auto",
        description="Where stage 1 searches; `auto`: on GPUs that this build of FAISS sees and that can hold the index."
        " What a GPU cannot do, such as filters, the CPU does.",
    )
    engine: str | None = Field(
        None,
        description="Address of a Milvus that finds the candidates instead of FAISS, such as `milvus://host:19530` "
        "(filled by `emcl engine`, extra `milvus`).",
    )
    engine_timeout_seconds: float = Field(1.0, gt=0, le=60, description="Longest time of a query to it.")
    engine_apply_seconds: float = Field(
        5.0,
        ge=0,
        le=3600,
        description="Interval of applying changes to it; 0: only `emcl engine fill` does.",
    )
    index_mmap: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Leave vectors in the files of the index, mapped; `auto`: if it is more than its `--index-memory`.",
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0: a free one.")
    workers: str = Field(
        "1",
        pattern="^(auto|[1-9][0-9]?)$",
        description="Processes that serve on the port, each with one batch at a time and limits of its own; `auto`: as "
        "many as there are cores and the free memory bears.",
    )
    require_keys: bool = Field(
        False,
        description="Answer only requests with a key (`emcl keys create`). Always on for hosts other than loopback.",
    )
    keys_file: Path = Field(Path("var/keys.json"), description="File with the hashes of the API keys.")
    session_seconds: int = Field(43_200, ge=60, le=2_592_000, description="How long a browser stays signed in.")
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Host names to answer for, comma-separated. Default: loopback names, or any name with a public "
        "address.",
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Addresses or networks of proxies, comma-separated, such as `10.0.0.0/8`, whose `X-Forwarded-For` "
        "and `X-Forwarded-Proto` are believed. Default: none, not even on loopback.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Origins whose pages may use the API with a key, comma-separated, such as `https://example.org`. "
        "Default: none.",
    )
    mcp: bool = Field(
        False, description="Serve the tools of `emcl mcp` to agents at `/mcp`, with keys and scopes (extra `mcp`)."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe log line shown.")
    log_format: Literal["text", "json"] = Field("text", description="`text`: plain lines; `json`: one object per line.")

    max_connections: int = Field(
        2000, ge=1, le=1_000_000, description="Open connections; more are answered with 503 and closed."
    )
    max_requests: int = Field(
        512, ge=1, le=100_000, description="Concurrent requests; more are answered with 503 before they are read."
    )
    request_timeout_seconds: float = Field(
        20.0, gt=0, le=3600, description="Longest time that a request's head, or its JSON body, may take to arrive."
    )
    rate_limit: float = Field(
        50.0, ge=0, le=1e6, description="Sustained requests per second for each key; 0: no limit."
    )
    rate_burst: int = Field(100, ge=1, le=1_000_000, description="Burst of requests that a key may make at once.")
    upload_rate_per_minute: float = Field(
        30.0, ge=0, le=1e6, description="Sustained uploads per minute for each key; 0: no limit."
    )
    upload_burst: int = Field(10, ge=1, le=1_000_000, description="Burst of uploads that a key may make at once.")
    limit_clients: bool = Field(False, description="Without required keys, apply these rates to each client address.")
    redis_url: str | None = Field(
        None,
        repr=False,
        description="Redis for shared caches and rates, `redis://[:password@]host:port/db`, also `rediss://` and "
        "`unix://`. Default: each process has its own.",
    )
    redis_timeout_ms: float = Field(50.0, gt=0, le=10_000, description="Longest time that a request waits for Redis.")
    redis_retry_seconds: float = Field(
        1.0, gt=0, le=3600, description="Interval of attempts to reach Redis again after it failed."
    )

    query_timeout_ms: float = Field(
        10_000.0, gt=0, le=600_000, description="Longest time that a query waits for its turn; then 503."
    )
    fusion_visual_weight: float = Field(
        1.0, ge=0, le=1000, description="Weight of the visual rank where words of a query match as well."
    )
    fusion_text_weight: float = Field(
        1.0, ge=0, le=1000, description="Weight of the rank by words there (titles, file names, tags, captions)."
    )
    fusion_rank_constant: float = Field(
        60.0,
        gt=0,
        le=10_000,
        description="Dampens the first ranks in that fusion: a rank counts 1 / (constant + rank).",
    )
    max_batch: int = Field(32, ge=1, le=1024, description="Most queries in one batch.")
    max_wait_ms: float = Field(
        2.0,
        ge=0,
        le=1000,
        description="Longest time that a query waits for others, if the batch before it held several; a lone query is "
        "never delayed.",
    )
    max_queue: int = Field(256, ge=1, le=100_000, description="Most queries that wait; more are answered with 503.")
    cache_entries: int = Field(10_000, ge=0, description="Text embeddings kept in memory; 0 keeps none.")
    query_log: int = Field(
        0,
        ge=0,
        le=100_000,
        description="Embeddings of past text queries kept in the store as the bank for hub bases; 0 keeps none.",
    )

    result_cache_bytes: ByteSize = Field(
        ByteSize(32 * MEBIBYTE), ge=0, description="Results kept in memory; 0 keeps none, in Redis neither."
    )
    result_cache_seconds: int = Field(
        3600, ge=1, le=2_592_000, description="How long results and text embeddings stay in Redis."
    )

    max_body_bytes: ByteSize = Field(ByteSize(MEBIBYTE), gt=0, description="Largest JSON body.")
    max_texts: int = Field(64, ge=1, le=10_000, description="Most texts in one request.")
    max_text_chars: int = Field(2000, ge=1, le=100_000, description="Longest text, in characters.")
    max_candidates: int = Field(1000, ge=1, le=100_000, description="Most candidates that a query may ask for.")

    upload_max_bytes: ByteSize = Field(ByteSize(100 * MEBIBYTE), gt=0, description="Largest uploaded video.")
    upload_max_seconds: float = Field(3600.0, gt=0, description="Longest uploaded video.")
    upload_max_pixels: int = Field(4096 * 2176, gt=0, description="Largest frame of an upload, width times height.")
    upload_timeout_seconds: float = Field(300.0, gt=0, description="Longest time that an upload may take to arrive.")
    upload_slots: int = Field(4, ge=1, le=256, description="Concurrent uploads; more are answered with 503.")
    upload_workers: int = Field(1, ge=1, le=64, description="Uploads that are decoded concurrently.")
    upload_folder: Path | None = Field(
        None, description="Folder of uploads while they are decoded. Default: the system's temporary folder."
    )
    decode_wall_seconds: float = Field(60.0, gt=0, description="Time after which decoding an upload is killed.")
    decode_cpu_seconds: int = Field(60, ge=1, description="Processor time that decoding an upload may use.")
    decode_memory_bytes: ByteSize = Field(
        ByteSize(2048 * MEBIBYTE),
        ge=256 * MEBIBYTE,
        description="Memory for decoding an upload, beyond the upload itself.",
    )

    watch_seconds: float = Field(
        2.0, ge=0, le=86_400, description="How often to look for changes by other processes; 0: never."
    )
    overlay_max_rows: int = Field(
        2000,
        ge=0,
        le=1_000_000,
        description="Segments and captions added or deleted over HTTP before a generation is published; 0: never.",
    )

    watch: Annotated[tuple[Path, ...], NoDecode] = Field(
        (),
        description="Folders to keep indexed while serving, comma-separated: new, changed and moved videos are indexed "
        "automatically (by `emcl index watch` in a process of its own).",
    )
    jobs_folder: Path = Field(Path("var/jobs"), description="Folder of batch jobs: the job store, logs, outputs.")
    jobs_inputs: Annotated[tuple[Path, ...], NoDecode] = Field(
        (),
        description="Folders that jobs over HTTP may read, comma-separated. Default: none; jobs can then use only what "
        "is sent with them and the output of other jobs.",
    )
    webhooks: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        repr=False,
        description="Addresses that get a signed request when a job has ended or new videos can be found, "
        "comma-separated, `https://host/path`. Default: none. No request to the service can add one.",
    )
    webhook_secret: str | None = Field(
        None,
        repr=False,
        description="Secret that signs webhooks: `whsec_` and 24 to 64 random bytes in base64. Set it in the "
        "environment: other users of the machine can see command lines.",
    )
    max_jobs: int = Field(100, ge=1, le=100_000, description="Most jobs that wait; more are answered with 503.")
    job_timeout_seconds: float = Field(
        86_400.0, gt=0, description="Time after which a job is stopped; a job may ask for less."
    )
    job_attempts: int = Field(
        1, ge=1, le=100, description="Automatic attempts for a job that was lost or killed by the system."
    )
    job_grace_seconds: float = Field(
        30.0, gt=0, description="Grace period of a job that is stopped: after SIGINT, and again after SIGTERM."
    )
    job_memory_bytes: ByteSize | None = Field(
        None,
        ge=256 * MEBIBYTE,
        description="Address space of each process of a job; not for jobs on a GPU. Default: no limit.",
    )
    job_nice: int = Field(
        10,
        ge=0,
        le=19,
        description="Niceness of jobs (0 to 19); higher values leave more time to searches.",
    )
    worker_concurrency: int = Field(1, ge=1, le=64, description="Jobs that one worker runs concurrently.")
    embedded_worker: Literal["auto", "on", "off"] = Field(
        "auto", description="Whether `emcl serve` runs jobs itself, in a child process; `auto`: only without Redis."
    )

    thumbnail_width: int = Field(320, ge=16, le=1920, description="Width of thumbnails, in pixels.")
    thumbnail_cache_bytes: ByteSize = Field(
        ByteSize(32 * MEBIBYTE),
        ge=0,
        description="Thumbnails kept in memory; as many bytes of sprites are kept on the disk.",
    )
    thumbnail_seconds: float = Field(
        5.0,
        gt=0,
        description="Processor time for one thumbnail; a sprite may take four times as much. The decoder is killed "
        "after four times as long.",
    )
    thumbnail_max_pixels: int = Field(
        8192 * 4352, gt=0, description="Largest frame of which a thumbnail is made, width times height."
    )

    accel_redirect: str = Field(
        "",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="Internal location of nginx (`alias /;`) that sends videos and previews for the service, such as "
        "`/media`, by `X-Accel-Redirect`; without it the service sends them itself.",
    )
    preview_folder: Path = Field(
        Path("var/previews"),
        description="Folder of H.264 previews of videos that browsers do not play, of downloaded clips and of sprites.",
    )
    preview_cache_bytes: ByteSize = Field(
        ByteSize(1024 * MEBIBYTE), ge=0, description="Size of previews and clips kept on disk; 0 makes none."
    )
    preview_seconds: float = Field(300.0, gt=0, description="Longest time to make one preview or clip.")
    clip_max_seconds: float = Field(600.0, gt=0, description="Longest moment that can be downloaded as a clip.")

    @field_validator("*", mode="after")
    @classmethod
    def _home_is_expanded(cls, value: Any) -> Any:
        return value.expanduser() if isinstance(value, Path) else value

    @field_validator("jobs_inputs", "watch", mode="before")
    @classmethod
    def _split_folders(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(Path(part.strip()).expanduser() for part in value.split(",") if part.strip())

    @field_validator("webhooks")
    @classmethod
    def _webhooks_are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment:
                raise ValueError("each address must begin with http:// or https:// and name a host")
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _secret_is_random(cls, value: str | None) -> str | None:
        if value is not None:
            webhook_key(value)
        return value

    @model_validator(mode="after")
    def _webhooks_are_signed(self) -> Settings:
        if self.webhooks and self.webhook_secret is None:
            raise ValueError(
                "--webhooks needs --webhook-secret (EMCL_WEBHOOK_SECRET), which their receivers check; make one with: "
                'echo "whsec_$(head -c 32 /dev/urandom | base64)"'
            )
        return self

    @field_validator("allowed_hosts", "trusted_proxies", "cors_origins", "webhooks", mode="before")
    @classmethod
    def _split_hosts(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("trusted_proxies")
    @classmethod
    def _proxies_are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in value:
            try:
                ip_network(proxy)
            except ValueError as error:
                raise ValueError(f"{error}; expected addresses or networks such as 10.0.0.7 or 10.0.0.0/8") from error
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins_are_named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not re.fullmatch(r"https?://[^/\s*]+", origin):
                raise ValueError(f"{origin!r} is not an origin; write it as https://example.org, without a path")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis_is_named(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("it must begin with redis://, rediss:// or unix://")
        try:
            urlsplit(value or "").port  # noqa: B018 - raises, and what it raises quotes a part of the URL
        except ValueError:
            raise ValueError("its host or port cannot be read; write special characters of a password as %XX") from None
        return value

    @model_validator(mode="after")
    def _public_needs_keys(self) -> Settings:
        if not self.is_loopback and "require_keys" in self.model_fields_set and not self.require_keys:
            raise ValueError(
                f"host {self.host} can be reached from other machines, so keys cannot be off: everyone who reaches the "
                "port could search, watch, upload and delete; use --host 127.0.0.1, or leave out --no-require-keys "
                "(EMCL_REQUIRE_KEYS)"
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
    def keys_required(self) -> bool:
        """Whether only requests with a key are answered."""
        return self.require_keys or not self.is_loopback

    @property
    def answered_hosts(self) -> tuple[str, ...] | None:
        """Host names to answer for, without ports; ``None`` for any."""
        if self.allowed_hosts:
            return self.allowed_hosts
        return LOOPBACK_HOSTS if self.is_loopback else None


def webhook_key(secret: str) -> bytes:
    """The bytes of a secret, written ``whsec_`` and base64. Raises ``ValueError`` unless they are 24 to 64."""
    try:
        key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    except ValueError:
        key = b""
    if not secret.startswith(_SECRET_PREFIX) or not 24 <= len(key) <= 64:
        raise ValueError(
            "it must be whsec_ and 24 to 64 random bytes in base64; make one with: "
            'echo "whsec_$(head -c 32 /dev/urandom | base64)"'
        )
    return key


def load_settings(options: dict[str, Any] | None = None) -> Settings:
    """Settings from options (those that are ``None`` count as not given), then the environment, then the defaults.

    Raises ``ValueError`` that names every setting that is wrong, the value that it got and what it takes.
    """
    try:
        return Settings(**{name: value for name, value in (options or {}).items() if value is not None})
    except ValidationError as error:
        raise ValueError("; ".join(_describe(problem) for problem in error.errors())) from error


def environment_of(settings: Settings) -> dict[str, str]:
    """The environment that gives a child process these settings."""
    given = {}
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if value is not None:
            given[variable_name(name)] = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return environment_of_jobs() | given


def environment_of_jobs() -> dict[str, str]:
    """Our environment without the settings of the service: jobs must not see them (they may hold passwords)."""
    return {name: value for name, value in os.environ.items() if not name.startswith("EMCL_")}


def _describe(problem: Any) -> str:
    if not problem["loc"]:
        return str(problem["msg"]).removeprefix("Value error, ")
    name = str(problem["loc"][0])
    secret = name in Settings.model_fields and not Settings.model_fields[name].repr  # it may hold a password
    got = "a value that is not shown" if secret else repr(problem["input"])
    return f"{option_name(name)} ({variable_name(name)}): {problem['msg']}, got {got}"


def option_name(field: str) -> str:
    """The command line option of a setting: ``max_batch`` is ``--max-batch``."""
    return "--" + field.replace("_", "-")


def variable_name(field: str) -> str:
    """The environment variable of a setting: ``max_batch`` is ``EMCL_MAX_BATCH``."""
    return f"EMCL_{field.upper()}"


def default_text(field: str) -> str:
    """The default of a setting as a user would write it; empty if it has none."""
    default = Settings.model_fields[field].default
    if isinstance(default, ByteSize):
        return default.human_readable().replace(".0", "")
    if default is None or default == ():
        return ""
    return str(default).lower() if isinstance(default, bool) else str(default)


def given(*names: str) -> Given:
    """Metadata of a command's dictionary: these settings (all, if none are named) are its options."""
    return Given(Settings, *names, default_text=default_text)


def settings_table() -> str:
    """The Markdown table of all settings, one row per setting, as ``docs/settings.md`` shows it."""
    rows = ["| option | environment | default | what it does |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = f"`{default_text(name)}`" if default_text(name) else ""
        rows.append(f"| `{option_name(name)}` | `{variable_name(name)}` | {default} | {field.description} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.stdout.write(settings_table() + "\n")
