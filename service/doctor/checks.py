"""``emcl doctor``: is everything there that the service needs, and if not, what to do.

Each check examines one thing and reports ``ok``, ``warning`` or ``problem``, what it found, and the next step. Checks
share what is expensive (the loaded model, the open index) through a ``Context``, and none keeps another from running:
what raises is reported as a problem of that check, so that the command works on an installation that is half broken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from service.settings import Settings

if TYPE_CHECKING:
    from indexer.store.reader import StoreReader
    from model.encoder import Encoder

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """What was found. ``next_step`` is empty where there is nothing to do."""

    name: str
    state: State
    detail: str
    next_step: str = ""
    seconds: float = 0.0


def ok(detail: str) -> Check:
    """Nothing to do."""
    return Check(name="", state="ok", detail=detail)


def warning(detail: str, next_step: str) -> Check:
    """It works, but not as well, or not for long."""
    return Check(name="", state="warning", detail=detail, next_step=next_step)


def problem(detail: str, next_step: str) -> Check:
    """It does not work."""
    return Check(name="", state="problem", detail=detail, next_step=next_step)


class NotCheckedError(Exception):
    """A check that this one depends on has failed."""


@dataclass
class Context:
    """What is examined, with what was found on the way."""

    settings: Settings
    encoder: Encoder | None = None
    reader: StoreReader | None = None

    def need_encoder(self) -> Encoder:
        """The loaded model. Raises ``NotCheckedError``."""
        if self.encoder is None:
            raise NotCheckedError("the model does not load")
        return self.encoder

    def need_reader(self) -> StoreReader:
        """The open index. Raises ``NotCheckedError``."""
        if self.reader is None:
            raise NotCheckedError("the index does not open")
        return self.reader

    def close(self) -> None:
        """Close the index."""
        if self.reader is not None:
            self.reader.close()
            self.reader = None


Examination = Callable[[Context], Check]


def examine(context: Context, examinations: Iterable[tuple[str, Examination]]) -> Iterator[Check]:
    """Every check in turn, whatever the ones before it found."""
    try:
        for name, look in examinations:
            started = time.perf_counter()
            try:
                found = look(context)
            except NotCheckedError as error:
                found = warning(f"not checked: {error}", "fix that first")
            except ValueError as error:  # ours say what to do
                found = problem(str(error), "fix that, then run this again")
            except Exception as error:  # whatever is broken is to be reported
                found = problem(f"{type(error).__name__}: {error}", "fix what the message names, then run this again")
            yield Check(**{**asdict(found), "name": name, "seconds": round(time.perf_counter() - started, 3)})
    finally:
        context.close()


def failed(checks: Sequence[Check]) -> bool:
    """Whether there is a problem; warnings are none."""
    return any(check.state == "problem" for check in checks)


def line_of(check: Check) -> str:
    """One check for a terminal: its state, what was found, and below it what to do."""
    mark = {"ok": "ok     ", "warning": "warning", "problem": "PROBLEM"}[check.state]
    first = f"{mark}  {check.name}: {check.detail}"
    return f"{first}\n         → {check.next_step}" if check.next_step else first
