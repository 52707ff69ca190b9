"""What the exceptions of file systems mean: whether trying again helps, and how to say what went wrong."""

from __future__ import annotations

from indexer.errors import SourceError

_LASTING_STATUS = range(400, 500)
_WORTH_TRYING_STATUS = (408, 425, 429)


def is_lasting(error: BaseException) -> bool:
    """Whether trying again is of no use."""
    status = _status(error)
    if status is not None:
        return status in _LASTING_STATUS and status not in _WORTH_TRYING_STATUS
    if isinstance(error.__cause__, SourceError):
        return True
    return isinstance(error, SourceError | PermissionError | NotImplementedError) or (
        isinstance(error, FileNotFoundError) and error.__cause__ is None
    )


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error; fsspec calls every failure of a question "not found"."""
    found = getattr(error, "status", None)
    if found is None and error.__cause__ is not None:
        return _status(error.__cause__)
    return found if isinstance(found, int) else None


def reason_of(error: BaseException) -> str:
    """What to tell."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and cause is not None:
        return reason_of(cause)
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    status, message = getattr(error, "status", None), getattr(error, "message", None)
    if status is not None and message is not None:
        return f"the server answered {status} {message}"
    return str(error) or type(error).__name__
