"""The one command, ``emcl``: its own commands, and those of the model and the indexer.

Heavy modules are imported inside the commands, so that ``--help`` answers at once. A ``ValueError`` or a file that
cannot be read is an error of the user: it is printed as one line, and the exit code is 1 (2 for wrong usage).

``emcl keys``: make, list and revoke API keys. A running service notices at once.

Answers as tables for a terminal.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer
import typer.core

from indexer.cli import app as index_app
from indexer.cli import store_app, transcribe
from indexer.cli_engine import app as engine_app
from indexer.store.confidence import LINE
from model.cli import app as model_app
from model.cli_options import from_models
from model.terminal import printable
from service import language
from service.cli_jobs import app as jobs_app
from service.cli_jobs import worker
from service.doctor.cli import doctor
from service.language import _
from service.schemas.search import CaptionOut, HitOut
from service.search.playlists import MOST_PICTURES, SUFFIXES, ListedMoment, ListFormat, clock
from service.settings import Settings, given, load_settings

if TYPE_CHECKING:
    from service.access.keys import Key, KeyStore
    from service.schemas.search import SearchAnswer
    from service.search.engine import Engine
    from service.search.live_index import LiveIndex
    from service.search.values import Ranking, SearchQuery, VideoFilter
    from service.workers import WorkerPlace

logger = logging.getLogger("service.cli")  # not "__main__", which it is when run with -m

KeysFile = Annotated[dict[str, Any], given("keys_file")]

keys_app = typer.Typer(help="API keys: make, list, revoke.", no_args_is_help=True)


@keys_app.command()
@from_models
def create(
    name: Annotated[str, typer.Option(help="Whose key it is: shown in lists and logs.")],
    scope: Annotated[
        Literal["search", "write", "admin"],
        typer.Option(help="search: find and watch. write: also change videos, captions, tags. admin: also run jobs."),
    ],
    expires: Annotated[float | None, typer.Option(help="Days until it stops working.", show_default="never")] = None,
    *,
    options: KeysFile,
) -> None:
    """Make a key and print it once; only its hash is stored."""
    key_store = _key_store(options)
    key, token = key_store.create(name, scope, expires_days=expires)
    typer.echo(f"key {key.key_id} ({key.name}, {key.scope}) is in {key_store.path}; it is not shown again:", err=True)
    typer.echo(token)


@keys_app.command("list")
@from_models
def list_keys(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    *,
    options: KeysFile,
) -> None:
    """Show all keys with their scope and state; hashes are not shown."""
    now = time.time()
    keys = _key_store(options).all_keys()
    if as_json:
        typer.echo(json.dumps([_shown(key, now) for key in keys], indent=2, ensure_ascii=False))
    elif not keys:
        typer.echo("no keys; make one with `emcl keys create`")
    else:
        rows = [tuple(printable(value or "never") for value in _shown(key, now).values()) for key in keys]
        typer.echo(_table(("id", "name", "scope", "state", "created", "expires"), rows))


@keys_app.command()
@from_models
def revoke(key: Annotated[str, typer.Argument(help="Its id or its name.")], *, options: KeysFile) -> None:
    """Revoke a key; its sessions end too."""
    revoked = _key_store(options).revoke(key)
    typer.echo(f"key {revoked.key_id} ({revoked.name}) is revoked")


def _key_store(options: dict[str, Any]) -> KeyStore:
    from service.access.keys import KeyStore

    return KeyStore(load_settings(options).keys_file)


def _shown(key: Key, now: float) -> dict[str, str | None]:
    return {
        "id": key.key_id,
        "name": key.name,
        "scope": key.scope,
        "state": key.state(now),
        "created": _day(key.created),
        "expires": _day(key.expires),
    }


def _day(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%MZ")


FIND, LIBRARY, OPERATE, TRAIN = "Find", "Library", "Operate", "Train and evaluate"
_FIRST = ("search", "serve", "demo", "index", "store", "doctor")


class _ByTask(typer.core.TyperGroup):
    """Lists the commands that most people want first; the rest as they were added."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """The names of all commands."""
        names = super().list_commands(ctx)
        return [name for name in _FIRST if name in names] + [name for name in names if name not in _FIRST]


app = typer.Typer(
    help="Find videos with words, and words with a video.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    cls=_ByTask,
)


def _put_under(panel: str, commands: typer.Typer) -> None:
    """Show the commands of an application, also of those without a name inside it, under one heading."""
    for command in commands.registered_commands:
        command.rich_help_panel = panel
    for group in commands.registered_groups:
        group.rich_help_panel = panel
        if group.typer_instance is not None and not isinstance(group.name, str):
            _put_under(panel, group.typer_instance)


_put_under(TRAIN, model_app)
app.add_typer(model_app)
app.add_typer(index_app, name="index", rich_help_panel=LIBRARY)
app.add_typer(store_app, name="store", rich_help_panel=LIBRARY)
app.add_typer(engine_app, name="engine", rich_help_panel=LIBRARY)
app.add_typer(keys_app, name="keys", rich_help_panel=OPERATE)
app.add_typer(jobs_app, name="jobs", rich_help_panel=OPERATE)
app.command(rich_help_panel=LIBRARY)(transcribe)
app.command(rich_help_panel=OPERATE)(worker)
app.command(rich_help_panel=OPERATE)(doctor)

# Options of `search` that are settings of the service too, and the settings that `demo` decides itself.
_MODEL_SETTINGS = ("store", "model", "pretrained", "device", "runtime", "precision", "exports", "threads")

_DEMO_DECIDES = ("store", "model", "pretrained")
_PICTURE_WIDTH = 320
_TILDE = re.compile(r"^(--[a-z-]+=)~(?=/|$)")


def main() -> None:
    """Run the command line; the console script."""
    # The shell expands `--store ~/x`, but not `--store=~/x`.
    sys.argv[1:] = [_TILDE.sub(lambda match: match[1] + str(Path.home()), text) for text in sys.argv[1:]]
    language.speak(language.chosen_language())
    command = typer.main.get_command(app)
    language.translate_help(command)
    language.translate_headings()
    try:
        command()
    except BrokenPipeError:  # what we write to, `head` perhaps, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except ModuleNotFoundError as error:
        if error.name != "faiss":
            raise
        extras = "pip install 'emcl-search[cpu]', or 'emcl-search[gpu]' for CUDA, never both"
        typer.echo(
            f"error: FAISS is not installed, and searching and indexing need it; install an extra: {extras}", err=True
        )
        sys.exit(1)
    except (ValueError, OSError) as error:
        typer.echo("\n".join(printable(line) for line in f"error: {error}".split("\n")), err=True)
        sys.exit(1)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"emcl-search {version('emcl-search')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command(rich_help_panel=FIND)
@from_models
def serve(options: Annotated[dict[str, Any], given()]) -> None:
    """Serve an index over HTTP: the page at /, the API at /v1, its description at /docs."""
    run_server(load_settings(options))


_DRAIN_SECONDS = 10  # for requests under way when the service is to end
_MARGIN_SECONDS = 20  # for what is being written then


def run_server(settings: Settings, *, examples: Sequence[str] = ()) -> None:
    """Bind the address, load everything, then serve until interrupted; ``examples`` are shown as queries to try."""
    from service.http.listener import bind, bind_shared
    from service.observe.logs import logging_to_stderr
    from service.workers import count_workers

    host, count = settings.host.strip("[]"), count_workers(settings.workers)
    with ExitStack() as stack:
        stack.enter_context(logging_to_stderr(settings.log_format, settings.log_level, in_thread=count == 1))
        listeners = [bind(host, settings.port)] if count == 1 else bind_shared(host, settings.port, count)
        for listener in listeners:
            stack.enter_context(closing(listener))
        logger.info("loading the index %s and its model …", settings.store)
        if count == 1:
            _run_server(settings, listeners[0], examples)
        else:
            _run_workers(settings, listeners, examples)


def _run_server(settings: Settings, listener: socket.socket, examples: Sequence[str]) -> None:
    from service.search.engine import build_engine
    from service.workers import ALONE

    _check_server(settings)
    engine = build_engine(settings, logger.info)
    _say_counts(engine)
    _serve(settings, engine, [listener], ALONE, lambda: _announce(settings, listener, examples))


def _run_workers(settings: Settings, listeners: Sequence[socket.socket], examples: Sequence[str]) -> None:
    """Load the model, then serve in a process for each listener."""
    from service.http.listener import bind_private
    from service.observe.logs import logging_to_stderr
    from service.search.engine import engine_with, load_model
    from service.workers import Supervisor, WorkerPlace, check_forkable

    _check_server(settings)
    if settings.index_mmap == "auto":
        settings = settings.model_copy(update={"index_mmap": "on"})  # so that the workers share its pages
    encoder = load_model(settings.model_copy(update={"threads": 1, "faiss_threads": 1}), logger.info)
    if encoder.device.type != "cpu":
        raise ValueError(
            f"--workers {len(listeners)} shares the model between processes, which {encoder.device} cannot; use "
            "--workers 1, or --device cpu"
        )
    check_forkable(f"the runtime {encoder.runtime.label}")

    with tempfile.TemporaryDirectory(prefix="emcl-") as name:
        folder = Path(name)

        def work(number: int, ready: Callable[[], None]) -> None:
            place = WorkerPlace(number=number, count=len(listeners), folder=folder)
            with (
                logging_to_stderr(settings.log_format, settings.log_level),
                bind_private(place.socket_of(number)) as private,
            ):
                engine = engine_with(settings, encoder)
                if place.leads:
                    _say_counts(engine)
                _serve(settings, engine, [listeners[number], private], place, ready)

        def close_listeners() -> None:
            for listener in listeners:
                listener.close()

        supervisor = Supervisor(
            len(listeners),
            work,
            announce=lambda: _announce(settings, listeners[0], examples),
            release=close_listeners,
            grace_seconds=_DRAIN_SECONDS + 2 * settings.job_grace_seconds + _MARGIN_SECONDS,
        )
        ended_by = supervisor.run()
    signal.raise_signal(ended_by)  # as uvicorn does: whoever started this sees what ended it


def _check_server(settings: Settings) -> None:
    from service.access.gate import open_keys
    from service.library.folder_watch import check_folders

    open_keys(settings)  # report a missing key before the model loads
    check_folders(settings)


def _say_counts(engine: Engine) -> None:
    with engine.live.lease() as generation:
        counts = generation.reader.counts
    logger.info("%d videos, %d captions", counts.videos, counts.captions)


def _announce(settings: Settings, listener: socket.socket, examples: Sequence[str]) -> None:
    port = listener.getsockname()[1]
    logger.info("running on http://%s:%d", settings.host, port)
    if settings.log_format == "text":
        typer.echo(_invitation(settings, port, examples), err=True)


def _serve(
    settings: Settings, engine: Engine, listeners: list[socket.socket], place: WorkerPlace, ready: Callable[[], None]
) -> None:
    """Serve ``engine`` in this process until it is interrupted; ``ready`` is called when it listens."""
    import uvicorn

    from service.app import create_app
    from service.http.protocol import Connections, allow_open_files

    allow_open_files(settings.max_connections)
    connections = Connections(max_connections=settings.max_connections, head_seconds=settings.request_timeout_seconds)
    config = uvicorn.Config(
        create_app(settings, engine, place),
        host=settings.host.strip("[]"),
        port=settings.port,
        log_level=settings.log_level,
        log_config=None,  # its lines go where ours go
        access_log=False,  # service.observe.metrics writes one line for each request
        http=connections.protocol,
        loop="asyncio",  # with uvloop new connections starve while others keep it busy (docs/performance.md)
        ws="none",
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )

    class Announcing(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                ready()

    Announcing(config).run(sockets=listeners)


def _invitation(settings: Settings, port: int, examples: Sequence[str]) -> str:
    host = "127.0.0.1" if settings.host.strip("[]") in ("0.0.0.0", "::") else settings.host  # noqa: S104  an address to open
    first = _("Open {address} and try:") if examples else _("Open {address}")
    lines = [first.format(address=f"http://{host}:{port}"), *(f"  {text}" for text in examples), _("Ctrl-C stops it.")]
    return "\n".join(lines)


@app.command("language", rich_help_panel=OPERATE)
def language_command(
    tag: Annotated[str | None, typer.Argument(help="Its tag, such as `de`. Default: show the one in use.")] = None,
) -> None:
    """Show the language of this command line, or choose and keep one."""
    from model.durable import write_atomically

    if tag is None:
        typer.echo(language.chosen_language())
        return
    if tag not in language.languages():
        raise ValueError(f"unknown language {tag!r}; expected one of {', '.join(language.languages())}")
    language.kept_choice().parent.mkdir(parents=True, exist_ok=True)
    write_atomically(language.kept_choice(), f"{tag}\n".encode())


@app.command("mcp", rich_help_panel=OPERATE)
def mcp_command(
    url: Annotated[
        str, typer.Option(envvar="EMCL_URL", help="Address of a running service.")
    ] = "http://127.0.0.1:8000",
    api_key: Annotated[
        str | None, typer.Option(envvar="EMCL_API_KEY", help="Key, where the service asks for one.")
    ] = None,
) -> None:
    """Give agents the library as tools: a Model Context Protocol server over stdio (extra `mcp`)."""
    try:
        from service.client.mcp import run_stdio
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the package {error.name} is not installed; install the extra: pip install 'emcl-search[mcp]'"
        ) from error
    run_stdio(url, api_key)


@app.command(rich_help_panel=FIND)
@from_models
def demo(
    folder: Annotated[Path, typer.Option(help="Folder of the clips and the index; the next call reuses them.")] = Path(
        "var/demo"
    ),
    count: Annotated[int, typer.Option(min=10, help="Number of clips.")] = 300,
    prepare_only: Annotated[bool, typer.Option(help="Make clips and index, but do not serve.")] = False,
    *,
    options: Annotated[dict[str, Any], given(*(name for name in Settings.model_fields if name not in _DEMO_DECIDES))],
) -> None:
    """Serve a generated corpus: clips of moving shapes that the shipped model never saw. Needs no network."""
    from service.demo import examples, prepare

    settings = load_settings({**options, "store": folder / "store", "model": "demo"})
    prepare(folder, count, say=lambda text: typer.echo(text, err=True))
    if not prepare_only:
        run_server(settings, examples=examples(folder))


@app.command(rich_help_panel=FIND)
@from_models
def search(
    text: Annotated[str | None, typer.Argument(help="What to look for.")] = None,
    video: Annotated[Path | None, typer.Option(help="A video to find captions and similar videos for.")] = None,
    image: Annotated[
        Path | None, typer.Option(help="A picture to find similar videos and captions for: JPEG, PNG, WebP, …")
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", help="Most results.")] = 10,
    offset: Annotated[int, typer.Option(help="Results to leave out before the first.")] = 0,
    candidates: Annotated[
        int | None, typer.Option(help="Candidates from stage 1 to rerank. Default: the checkpoint's, usually 100.")
    ] = None,
    rerank: Annotated[
        Literal["emcl", "none", "frozen"],
        typer.Option(help="emcl, none (pooling without EMCL) or frozen (stage 1 alone)."),
    ] = "emcl",
    group: Annotated[
        Literal["video", "moment", "segment"],
        typer.Option(help="Best segment of each video, of those that look alike (moment), or all (segment)."),
    ] = "video",
    fusion: Annotated[
        Literal["auto", "visual", "text"],
        typer.Option(
            help="auto (pictures, and words in titles, names, tags and captions where they match), visual (pictures "
            "alone) or text (words alone; loads no model)."
        ),
    ] = "auto",
    tag: Annotated[list[str] | None, typer.Option(help="Only videos with this tag; may be repeated.")] = None,
    min_seconds: Annotated[float | None, typer.Option(help="Only videos at least this long.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Only videos at most this long.")] = None,
    after: Annotated[
        str | None, typer.Option(metavar="DATE", help="Only videos recorded on this date or later, such as 2024-05-01.")
    ] = None,
    before: Annotated[
        str | None, typer.Option(metavar="DATE", help="Only videos recorded on this date or earlier.")
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Only videos with a file in this folder or below.")] = None,
    camera: Annotated[str | None, typer.Option(help="Only videos of cameras with this in their make or model.")] = None,
    min_height: Annotated[
        int | None, typer.Option(min=1, help="Only videos whose shorter side has so many pixels, such as 1080.")
    ] = None,
    min_confidence: Annotated[
        float, typer.Option(help="Leave out hits that fit less well: 0 to 1 (see docs/search.md).")
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, as the API answers.")] = False,
    print0: Annotated[
        bool,
        typer.Option(
            "--print0", help="Print only the paths of the hits' files, with a NUL after each, as `xargs -0` reads them."
        ),
    ] = False,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Also write the hits to a file: a playlist (.m3u8), an edit decision list (.edl) or one page with "
            "pictures (.html)."
        ),
    ] = None,
    frame_rate: Annotated[int, typer.Option(min=1, max=240, help="Frames per second of the edit decision list.")] = 25,
    open_best: Annotated[bool, typer.Option("--open", help="Open the best hit in the system's video player.")] = False,
    *,
    options: Annotated[dict[str, Any], given(*_MODEL_SETTINGS)],
) -> None:
    """Search an index with words, or with a video."""
    from service.schemas.search import SearchAnswer
    from service.search.engine import build_engine
    from service.search.values import Ranking, SearchQuery

    if sum(given is not None for given in (text, video, image)) != 1:
        raise typer.BadParameter("give words, --video FILE or --image FILE, one of them")
    upload = video or image
    if save is not None:
        _check_saving(save, upload, k)
    if print0 and (upload is not None or as_json):
        raise typer.BadParameter("--print0 goes with words, and without --json")
    if upload is not None and min_confidence > 0:
        raise typer.BadParameter("--min-confidence goes with words")
    ranking = Ranking(
        k=k,
        offset=offset,
        candidates=candidates,
        rerank=rerank,
        group=group,
        min_confidence=min_confidence,
        fusion=fusion,
    )
    wanted = _filter_of(
        tags=tag or [],
        min_seconds=min_seconds,
        max_seconds=max_seconds,
        recorded_after=after,
        recorded_before=before,
        folder=None if folder is None else str(folder.expanduser().absolute()),
        camera=camera,
        min_height=min_height,
    )
    if fusion == "text":
        if text is None:
            raise typer.BadParameter("--fusion text needs words: a video has none to look for")
        query = SearchQuery(text=text, ranking=ranking, filter=wanted)
        shown = _Shown(as_json=as_json, print0=print0, open_best=open_best, save=save, frame_rate=frame_rate)
        _search_words(load_settings(options), query, shown)
        return
    engine = build_engine(load_settings(options), lambda line: typer.echo(line, err=True))
    typer.echo(f"EMCL: {engine.active().text}", err=True)
    notice = engine.demo_notice()
    if notice:
        typer.echo(f"warning: {notice}", err=True)
    try:
        if upload is not None:
            _search_by_upload(engine, upload, ranking, as_json, is_picture=image is not None)
            return
        query = SearchQuery(text=text, ranking=ranking, filter=wanted)
        engine.limits.check_search(query)
        if min_confidence > 0:
            engine.check_confidence()
        answer = SearchAnswer.of(engine.search([query])[0], with_paths=True)
        if answer.truncated:
            typer.echo(_("note: the text is longer than the model reads; its end was ignored"), err=True)
        if answer.unknown_script:
            typer.echo(
                _("note: the model does not read {script} script; ask in English").format(script=answer.unknown_script),
                err=True,
            )
        if answer.nothing_fits:
            typer.echo(_("note: nothing fits well"), err=True)
        shown = _Shown(as_json=as_json, print0=print0, open_best=open_best, save=save, frame_rate=frame_rate)
        shown.show(answer, engine.live, query.text or "")
    finally:
        engine.close()


class _Shown(NamedTuple):
    """What is done with the answer to a search in words."""

    as_json: bool
    print0: bool
    open_best: bool
    save: Path | None
    frame_rate: int

    def show(self, answer: SearchAnswer, live: LiveIndex, text: str) -> None:
        if self.print0:
            _print_paths(answer.hits, live)
        else:
            typer.echo(_json(answer) if self.as_json else hits_table(answer.hits))
        if self.save is not None:
            _save(answer.hits, live, text, self.save, self.frame_rate)
        if self.open_best and answer.hits:
            _open(live, answer.hits[0].video_id)


def _print_paths(hits: Sequence[HitOut], live: LiveIndex) -> None:
    """The files of hits, best first, each followed by NUL; those that are gone are named on stderr."""
    from service.errors import Gone
    from service.media.files import find_file

    with live.lease() as generation:
        for hit in hits:
            try:
                path = find_file(generation.video(hit.video_id))
            except Gone:
                typer.echo(printable(f"note: the file of {hit.title} is not there"), err=True)
                continue
            typer.echo(os.fsencode(path.absolute()) + b"\0", nl=False)


def _filter_of(**given: Any) -> VideoFilter:
    """The filter of options that are named as in the API. Raises ``typer.BadParameter`` for dates that are none."""
    from pydantic import ValidationError

    from service.schemas.search import FilterIn

    try:
        return FilterIn(**given).to_filter()
    except ValidationError as error:
        first = error.errors()[0]
        option = {"recorded_after": "--after", "recorded_before": "--before"}.get(str(first["loc"][0]), first["loc"][0])
        raise typer.BadParameter(f"{option}: {first['msg'].removeprefix('Value error, ')}") from error


def _check_saving(target: Path, video: Path | None, k: int) -> None:
    """Wrong usage is reported before anything loads."""
    kind = _list_format(target)
    if video is not None:
        raise typer.BadParameter("--save goes with words")
    if kind == "html" and k > MOST_PICTURES:
        raise typer.BadParameter(f"a page with pictures has at most {MOST_PICTURES} hits, got --k {k}")


def _list_format(target: Path) -> ListFormat:
    formats: dict[str, ListFormat] = {".m3u": "m3u", **{suffix: kind for kind, suffix in SUFFIXES.items()}}
    if target.suffix.lower() not in formats:
        raise typer.BadParameter(f"--save {target}: the name must end in {', '.join(sorted(formats))}")
    return formats[target.suffix.lower()]


def _save(hits: Sequence[HitOut], live: LiveIndex, text: str, target: Path, frame_rate: int) -> None:
    """Write hits as a list that other programs open; the files are named where they are on this machine."""
    from model.durable import write_atomically
    from service.search.playlists import edit_list, m3u_playlist, picture_page

    kind = _list_format(target)
    moments = [_listed(hit, live, with_picture=kind == "html") for hit in hits]
    if kind == "m3u":
        content = m3u_playlist(moments, text)
    elif kind == "edl":
        content = edit_list(moments, text, frame_rate)
    else:  # to be shared: it does not say where files are
        content = picture_page([replace(moment, url=None) for moment in moments], text, datetime.now().astimezone())
    write_atomically(target, content.encode())
    typer.echo(f"wrote {target}", err=True)


def _listed(hit: HitOut, live: LiveIndex, *, with_picture: bool) -> ListedMoment:
    """A hit as an entry of a list, without a place if its file is gone."""
    from model.video.sampling import VideoError
    from service.errors import Gone
    from service.media.files import find_file
    from service.media.pictures import picture_of

    path, picture = None, None
    with live.lease() as generation, suppress(Gone):
        path = find_file(generation.video(hit.video_id))
    if with_picture and path is not None:
        with suppress(VideoError):
            picture = picture_of(path, hit.moment, _PICTURE_WIDTH)
    return ListedMoment(
        title=hit.title,
        name=hit.title if path is None else path.name,
        url=None if path is None else path.absolute().as_uri(),
        start_seconds=hit.start,
        end_seconds=hit.end,
        moment_seconds=hit.moment,
        snippet=[(part.text, part.match) for part in hit.snippet],
        picture=picture,
    )


def _search_words(settings: Settings, query: SearchQuery, shown: _Shown) -> None:
    from indexer.store.reader import StoreReader
    from service.schemas.search import SearchAnswer
    from service.search.engine import search_text
    from service.search.live_index import LiveIndex
    from service.search.values import QueryLimits

    live = LiveIndex(lambda: StoreReader.open(settings.store))
    try:
        QueryLimits.from_settings(settings).check_search(query)
        with live.lease() as generation:
            answer = SearchAnswer.of(search_text(generation, query), with_paths=True)
        shown.show(answer, live, query.text or "")
    finally:
        live.close()


def _open(live: LiveIndex, video_id: str) -> None:
    """Show a video in the system's own player. Raises ``ServiceError`` if its file is gone."""
    from service.media.files import find_file

    with live.lease() as generation:
        path = find_file(generation.video(video_id))
    if typer.launch(str(path)) != 0:
        raise ValueError(f"no program of this system opened {path}; open it yourself")


def _search_by_upload(engine: Engine, path: Path, ranking: Ranking, as_json: bool, *, is_picture: bool) -> None:
    import numpy as np

    from model.video.sampling import decode
    from service.media.pictures import still_of
    from service.schemas.search import UploadAnswer, UploadOut
    from service.search.values import UploadQuery

    engine.limits.check_ranking(ranking)
    if is_picture:
        frames, times, seconds = still_of(path.read_bytes()), np.zeros(1), 0.0
    else:
        batch = decode(path, sampling=engine.sampling)
        frames, times, seconds = batch.frames, batch.timestamps_seconds, batch.duration_seconds
    query = UploadQuery(frames_FHWC=engine.encoder.preprocess(frames), timestamps_seconds=times, ranking=ranking)
    decoded = UploadOut(duration_seconds=seconds, frames=len(times))
    answer = UploadAnswer.of(engine.search_uploads([query])[0], decoded, with_paths=True)
    if as_json:
        typer.echo(_json(answer))
    else:
        typer.echo(
            f"{_('captions')}\n{captions_table(answer.captions)}\n\n{_('similar videos')}\n{hits_table(answer.hits)}"
        )


def _json(answer: Any) -> str:
    return json.dumps(answer.model_dump(mode="json"), indent=2, ensure_ascii=False)


def hits_table(hits: Sequence[HitOut]) -> str:
    """One line for each hit: scores, confidence, the moment and how many more of its video match (``+2``), the segment,
    title, tags, why it matched.

    A rule separates hits after the last that fits well; in a terminal they are faint.
    """
    rows = [
        (
            f"{number}",
            f"{hit.score:.3f}",
            f"{hit.stage1_score:.3f}",
            "-" if hit.confidence is None else f"{hit.confidence:.2f}",
            clock(hit.moment) + (f" +{len(hit.moments) - 1}" if len(hit.moments) > 1 else ""),
            f"{clock(hit.start)}-{clock(hit.end)}",
            hit.title,
            " ".join(hit.tags),
            " ".join(hit.matched),
        )
        for number, hit in enumerate(hits, start=1)
    ]
    head = ("#", "score", "stage 1", "fit", "moment", "segment", "video", "tags", "matched")
    lines = _table(head, rows).split("\n")
    fits = [bool(hit.snippet) or hit.confidence is None or hit.confidence >= LINE for hit in hits]
    strong = 1 + max((number for number, fit in enumerate(fits, 1) if fit), default=0)
    if not hits or strong == len(lines):
        return "\n".join(lines)
    rule = _("-- nothing fits well ") if strong == 1 else _("-- these fit less well ")
    weak = [typer.style(line, dim=True) for line in lines[strong:]]
    return "\n".join([*lines[:strong], rule.ljust(max(map(len, lines)), "-"), *weak])


def captions_table(captions: Sequence[CaptionOut]) -> str:
    """One line for each caption: scores, the moment in the upload, the text."""
    rows = [
        (f"{number}", f"{caption.score:.3f}", f"{caption.stage1_score:.3f}", clock(caption.moment), caption.text)
        for number, caption in enumerate(captions, start=1)
    ]
    return _table(("#", "score", "stage 1", "moment", "caption"), rows)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return _("nothing found")
    head = tuple(_(name) for name in head)
    rows = [tuple(printable(cell) for cell in row) for row in rows]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    )


if __name__ == "__main__":
    main()
