"""``emcl keys``: make, list and revoke API keys. A running service notices at once."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from service.cli_options import takes_settings
from service.settings import load_settings

if TYPE_CHECKING:
    from service.access.keys import Key, KeyBook

app = typer.Typer(help="API keys: make, list, revoke.", no_args_is_help=True)


@app.command()
@takes_settings("keys_file")
def create(
    name: Annotated[str, typer.Option(help="Whose key it is: shown in lists and logs.")],
    scope: Annotated[
        Literal["search", "write", "admin"],
        typer.Option(help="search: find and watch. write: also change videos, captions, tags. admin: also run jobs."),
    ],
    expires: Annotated[float | None, typer.Option(help="Days until it stops working.", show_default="never")] = None,
    **options: Any,
) -> None:
    """Make a key and print it: this once, for only its hash is kept."""
    book = _book(options)
    key, token = book.create(name, scope, expires_days=expires)
    typer.echo(f"key {key.key_id} ({key.name}, {key.scope}) is in {book.path}; it is shown only now:", err=True)
    typer.echo(token)


@app.command("list")
@takes_settings("keys_file")
def list_keys(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    **options: Any,
) -> None:
    """Show all keys with their scope and state; hashes are not shown."""
    now = time.time()
    keys = _book(options).all_keys()
    if as_json:
        typer.echo(json.dumps([_shown(key, now) for key in keys], indent=2, ensure_ascii=False))
    elif not keys:
        typer.echo("no keys; make one with `emcl keys create`")
    else:
        typer.echo(_table([_shown(key, now) for key in keys]))


@app.command()
@takes_settings("keys_file")
def revoke(key: Annotated[str, typer.Argument(help="Its id or its name.")], **options: Any) -> None:
    """Make a key worthless from now on; its sessions end too."""
    revoked = _book(options).revoke(key)
    typer.echo(f"key {revoked.key_id} ({revoked.name}) is revoked")


def _book(options: dict[str, Any]) -> KeyBook:
    from service.access.keys import KeyBook

    return KeyBook(load_settings(options).keys_file)


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


def _table(rows: list[dict[str, str | None]]) -> str:
    cells = [list(rows[0]), *([value or "never" for value in row.values()] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)
