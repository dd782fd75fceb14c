"""Write files so that a process killed at any instant leaves the old file or the new one."""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield an empty file to write, which replaces `path` in one step unless writing fails."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        fresh.touch(exist_ok=False)
        mode = fresh.stat().st_mode
        yield fresh
        with fresh.open("r+b") as file:
            os.fsync(file.fileno())
        fresh.chmod(mode)  # some writers replace the file by one that only the owner may read
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def write_file(path: Path, content: str | bytes) -> None:
    """Write bytes, or text as UTF-8, in one step; see `replace_file`."""
    with replace_file(path) as fresh:
        fresh.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield the path of a new folder, which replaces `path` at the end, though not in one step."""
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as name:
        fresh, old = Path(name) / path.name, Path(name) / "old"
        yield fresh
        if path.exists():
            os.replace(path, old)  # no folder can be replaced: for an instant there is none
        os.replace(fresh, path)


def lock_file(path: Path, *, timeout: float = -1) -> FileLock:
    """A lock `NAME.lock` for processes that write `path`; a negative `timeout` waits for ever."""
    return FileLock(path.with_name(f"{path.name}.lock"), timeout=timeout)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
