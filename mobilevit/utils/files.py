"""Write files so that a process killed at any instant leaves the old file or the new one."""

import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

_WRITING: set[Path] = set()
"""Temporary files and folders that this process is writing."""
_CLEARED: set[Path] = set()
"""Folders in which this process has looked for leftovers."""
HOST = re.sub(r"[^\w-]", "_", socket.gethostname())
"""This machine, in the names of temporary files."""
_OLD = "old"


@contextmanager
def replace_file(path: Path, *, size: int | None = None) -> Iterator[Path]:
    """Yield an empty file to write, which replaces `path` in one step unless writing fails.

    It lies next to `path`. The first call in a folder removes what killed processes have left
    there. `size` is how many bytes will be written, if that is known, for the error of a full disk.
    """
    with _temporary(path, size) as fresh:
        fresh.touch(exist_ok=False)
        mode = fresh.stat().st_mode
        yield fresh
        with fresh.open("r+b") as file:
            os.fsync(file.fileno())
        fresh.chmod(mode)  # some writers replace the file by one that only the owner may read
        os.replace(fresh, path)


def write_file(path: Path, content: str | bytes) -> None:
    """Write bytes, or text as UTF-8, in one step; see `replace_file`."""
    data = content.encode() if isinstance(content, str) else content
    with replace_file(path, size=len(data)) as fresh:
        fresh.write_bytes(data)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield the path of a new folder, which replaces `path` at the end, though not in one step."""
    with _temporary(path) as outer:
        outer.mkdir()
        fresh = outer / path.name
        yield fresh
        if path.exists():  # no folder can be replaced: for an instant there is none
            os.replace(path, outer / _OLD)
        os.replace(fresh, path)


@contextmanager
def _temporary(path: Path, size: int | None = None) -> Iterator[Path]:
    """The path of a temporary file or folder next to `path`, which names this process."""
    if path.parent not in _CLEARED:  # once: listing a large folder for each of its files is slow
        remove_leftovers(path.parent)
        _CLEARED.add(path.parent)
    fresh = path.with_name(f".{path.name}.{HOST}.{os.getpid()}-{secrets.token_hex(4)}")
    _WRITING.add(fresh)
    try:
        yield fresh
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        files = [fresh, *fresh.rglob("*")] if fresh.exists() else []
        written = sum(file.stat().st_size for file in files if file.is_file())
        needed = f"more than {written:,}" if size is None else f"{size:,}"
        message = f"{os.strerror(error.errno)}: {needed} bytes are needed"
        raise OSError(error.errno, message, str(path)) from error
    finally:
        _remove(fresh)
        _WRITING.discard(fresh)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders that killed processes have left in a folder.

    Those of other machines, which may share the folder and still write them, stay.
    """
    for left in folder.glob(".*"):
        match = re.fullmatch(rf"\.(.+)\.{re.escape(HOST)}\.(\d+)-[0-9a-f]{{8}}", left.name)
        # A process may have the number of a killed one, as in a container that is started again.
        own = match and int(match[2]) == os.getpid() and left not in _WRITING
        if match and (own or not _is_running(int(match[2]))):
            target = folder / match[1]
            if (left / _OLD).exists() and not target.exists():  # killed between two steps
                os.replace(left / match[1], target)
            _remove(left)


def _is_running(process: int) -> bool:
    if os.name == "nt":  # where signal 0 is Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def lock_file(path: Path) -> FileLock:
    """A lock `NAME.lock` for processes that write `path`."""
    return FileLock(path.with_name(f"{path.name}.lock"))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
