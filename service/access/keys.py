"""API keys and their scopes, kept in one file that holds their hashes, not the keys.

A key is ``emcl_ID_SECRET``: 12 hexadecimal digits that name it in public, and 64 that are 256 random bits. The file
has the SHA-256 of the whole key. A slow hash (scrypt, Argon2) protects what a person chose, because that can be
guessed; 256 random bits cannot, so a fast hash is right, and costs a request nothing. The public part finds the one
hash to compare, in constant time.

The file (JSON, mode 0600) is replaced as a whole under a lock, so that several processes may write it, and read again
when it was replaced, so that a revoked key stops working at once and without a restart.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import secrets
import stat
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal, get_args

from filelock import FileLock

from model.durable import write_atomically

logger = logging.getLogger(__name__)

Scope = Literal["search", "write", "admin"]
"""``search`` reads, ``write`` also changes the library, ``admin`` also runs jobs and swaps indexes."""

SCOPES: tuple[Scope, ...] = get_args(Scope)
PREFIX = "emcl_"
_TOKEN = re.compile(r"emcl_([0-9a-f]{12})_[0-9a-f]{64}")
_NAME = re.compile(r"[\w.@+-][\w.@ +-]{0,63}")
_FORMAT = 1
_DAY_SECONDS = 86_400
_MODE = 0o600


def includes(held: Scope, wanted: Scope) -> bool:
    """Whether a key of scope ``held`` may do what ``wanted`` allows."""
    return SCOPES.index(held) >= SCOPES.index(wanted)


@dataclass(frozen=True, kw_only=True)
class KeyIdentity:
    """The identity that a request carries after its key was checked."""

    key_id: str
    name: str
    scope: Scope


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key as the file holds it. Times are seconds since 1970, ``None`` for never."""

    key_id: str
    name: str
    scope: Scope
    digest: str
    created: float
    expires: float | None = None
    revoked: float | None = None

    def state(self, now: float) -> Literal["valid", "expired", "revoked"]:
        """Its state at a time."""
        if self.revoked is not None:
            return "revoked"
        return "valid" if self.expires is None or now < self.expires else "expired"

    @property
    def identity(self) -> KeyIdentity:
        """What requests carry."""
        return KeyIdentity(key_id=self.key_id, name=self.name, scope=self.scope)


@dataclass(frozen=True)
class _Content:
    keys: dict[str, Key]
    session_secret: bytes


_EMPTY = _Content({}, b"")


class KeyStore:
    """The keys of one file, which need not exist yet. Safe to use from several threads and processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        self._seen: tuple[int, int, int] | None = None
        self._content = _EMPTY

    def create(self, name: str, scope: Scope, *, expires_days: float | None = None) -> tuple[Key, str]:
        """Add a key; returns it and the token, which is nowhere else. Raises ``ValueError``."""
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} is not a name for a key; use up to 64 letters, digits, spaces and ._@+-, like 'web-page'"
            )
        if scope not in SCOPES:
            raise ValueError(f"there is no scope {scope!r}; use one of {', '.join(SCOPES)}")
        if expires_days is not None and not 0 < expires_days <= 36_500:
            raise ValueError(f"a key cannot expire in {expires_days} days; use more than 0 and at most 36500")
        key_id, now = secrets.token_hex(6), time.time()
        token = f"{PREFIX}{key_id}_{secrets.token_hex(32)}"
        expires = None if expires_days is None else now + expires_days * _DAY_SECONDS
        key = Key(key_id=key_id, name=name, scope=scope, digest=_digest(token), created=now, expires=expires)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._writing() as keys:
            if any(other.name == name and other.state(now) == "valid" for other in keys.values()):
                raise ValueError(f"there is a valid key named {name!r}; choose another name, or revoke that one first")
            keys[key_id] = key
        return key, token

    def revoke(self, named: str) -> Key:
        """Revoke a key, given by its id or its name. Raises ``ValueError``."""
        now = time.time()
        with self._writing() as keys:
            found = [key for key in keys.values() if named in (key.key_id, key.name) and key.revoked is None]
            if len(found) != 1:
                what = "no key" if not found else f"{len(found)} keys"
                raise ValueError(
                    f"{what} in {self.path} with the id or name {named!r} that could be revoked; "
                    "see `emcl keys list`, and give an id"
                )
            key = Key(**{**asdict(found[0]), "revoked": now})
            keys[key.key_id] = key
        return key

    def all_keys(self) -> list[Key]:
        """All keys, oldest first. Raises ``ValueError`` for a damaged file."""
        return sorted(self._current().keys.values(), key=lambda key: key.created)

    def has_valid(self) -> bool:
        """Whether anybody could sign in. Raises ``ValueError`` for a damaged file."""
        now = time.time()
        return any(key.state(now) == "valid" for key in self._current().keys.values())

    def check(self, token: str) -> KeyIdentity | None:
        """The identity of this token; ``None`` if it is not a valid key.

        Takes the same time whichever digit is wrong, and whether the key exists or not.
        """
        match = _TOKEN.fullmatch(token)
        if match is None:
            return None
        key = self._current().keys.get(match[1])
        expected = "0" * 64 if key is None else key.digest
        same = hmac.compare_digest(_digest(token), expected)
        return key.identity if key is not None and same and key.state(time.time()) == "valid" else None

    def named(self, key_id: str) -> KeyIdentity | None:
        """The identity of a key that was checked before, if it is still valid."""
        key = self._current().keys.get(key_id)
        return key.identity if key is not None and key.state(time.time()) == "valid" else None

    @property
    def session_secret(self) -> bytes:
        """32 random bytes that sign sessions, the same for all processes that share the file; empty without a file."""
        return self._current().session_secret

    def _writing(self) -> _Writing:
        return _Writing(self)

    def _current(self) -> _Content:
        """The content, read again if the file was replaced: one ``stat`` a call otherwise."""
        try:
            info = self.path.stat()
        except FileNotFoundError:
            return _EMPTY
        seen = (info.st_mtime_ns, info.st_size, info.st_ino)
        with self._lock:
            if seen != self._seen:
                self._content = read_keys(self.path)
                if stat.S_IMODE(info.st_mode) & 0o077:
                    logger.warning("%s can be read by others on this machine; `chmod 600` it", self.path)
                self._seen = seen
            return self._content


class _Writing:
    """Lock, read, let the caller change, write. Nothing is written if the caller raises."""

    def __init__(self, key_store: KeyStore) -> None:
        self._path = key_store.path
        self._lock = FileLock(key_store.path.with_name(f".{key_store.path.name}.lock"))

    def __enter__(self) -> dict[str, Key]:
        if not self._path.parent.is_dir():
            raise ValueError(f"there is no keys file {self._path}; name it, or make a key with `emcl keys create`")
        self._lock.acquire()
        try:
            content = read_keys(self._path) if self._path.exists() else _EMPTY
        except BaseException:
            self._lock.release()
            raise
        self._secret = content.session_secret or secrets.token_bytes(32)
        self._keys = dict(content.keys)
        return self._keys

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                text = _written(self._keys, self._secret)
                write_atomically(self._path, text.encode(), mode=_MODE)
        finally:
            self._lock.release()


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _written(keys: dict[str, Key], secret: bytes) -> str:
    content = {"format": _FORMAT, "session_secret": secret.hex(), "keys": [asdict(key) for key in keys.values()]}
    return json.dumps(content, indent=1) + "\n"


def read_keys(path: Path) -> _Content:
    """The content of a keys file. Raises ``ValueError`` for anything else."""
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']!r}, expected {_FORMAT}")
        keys = [Key(**entry) for entry in content["keys"]]
        if any(key.scope not in SCOPES or len(key.digest) != 64 for key in keys):
            raise ValueError("a key without scope or hash")
        return _Content({key.key_id: key for key in keys}, bytes.fromhex(content["session_secret"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a keys file of this version ({type(error).__name__}); restore it from a copy, or move it "
            "away and make new keys with `emcl keys create`"
        ) from error
