"""Downloads of weights, which are resumed, verified and cached.

Files from URLs go to the folder of `torch.hub` (`TORCH_HOME` moves it), Hub repositories to the
Hub's own cache (`HF_HOME`; `HF_ENDPOINT` names a mirror, `HF_HUB_OFFLINE` forbids the network).
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import torch

from mobilevit.checkpoints.adapter import JSON_FILES
from mobilevit.utils.files import file_sha256, lock_file
from mobilevit.utils.urls import TIMEOUT

log = logging.getLogger(__name__)

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of weight files in folders, in order of preference."""
ATTEMPTS = 5
"""Attempts without a new byte before a download fails."""
PAUSE = 1.0
"""Seconds before the second attempt; doubled before each further one."""
_CHUNK = 1 << 20
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO)
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)


class DownloadError(OSError):
    """Weights that could not be downloaded; the message says why, and what to do."""


def fetch(url: str, *, address: str | None = None, sha256: str | None = None) -> Path:
    """Download a file unless it is cached; later processes resume an interrupted download.

    Args:
        url: what the file is cached by.
        address: where to download it from, if not `url`: a mirror.
        sha256: the file's digest, if it is known; a cached file is verified too.
    """
    key = hashlib.sha256(url.encode()).hexdigest()[:12]
    name = Path(urlsplit(url).path).name or "weights"
    target = Path(torch.hub.get_dir()) / "checkpoints" / "mobilevit" / key / name
    target.parent.mkdir(parents=True, exist_ok=True)
    address = address or url
    with lock_file(target):  # several processes may want it at once
        if target.is_file():
            if sha256 is None or (found := file_sha256(target)) == sha256:
                return target
            log.warning("%s has changed (its SHA-256 is %s): downloading it again", target, found)
        part = target.with_name(f"{name}.part")
        log.info("downloading %s to %s", address, target)
        _download(address, part, target)
        _tag(part).unlink(missing_ok=True)
        if sha256 is not None and (found := file_sha256(part)) != sha256:
            part.unlink()
            raise DownloadError(
                f"{address} is not the expected file: its SHA-256 is {found}, not {sha256}; the "
                "download was deleted"
            )
        part.replace(target)
    return target


def from_hub(repository: str, *, revision: str | None = None) -> Path:
    """Download a model repository, `owner/name`, and return its folder in the Hub's cache.

    Cached files are used without asking the Hub for newer ones. `revision` is a branch, tag or
    commit, by default the main branch.
    """
    for name in JSON_FILES:
        _hub_file(repository, name, revision)
    for name in WEIGHT_FILES:
        if path := _hub_file(repository, name, revision):
            _verify_blob(path)
            return path.parent
    raise DownloadError(f"the Hub's {repository} has neither {' nor '.join(WEIGHT_FILES)}")


def _hub_file(repository: str, name: str, revision: str | None) -> Path | None:
    """One file of a repository, or None if it has no such file."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    missing = f"there is no file or folder {repository}"
    try:
        cached = try_to_load_from_cache(repository, name, revision=revision)
        if cached is not None:  # a path, or a mark that there is no such file
            return Path(cached) if isinstance(cached, str) else None
        return Path(hf_hub_download(repository, name, revision=revision))
    except LocalEntryNotFoundError as error:
        raise DownloadError(
            f"{missing}, and as a Hub id it is not cached and the Hub is unreachable: "
            f"{error.__cause__ or error}"
        ) from error
    except EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:  # as all of huggingface_hub's errors are
        raise DownloadError(f"{missing}, and the Hub refuses it: {error}") from error


def _verify_blob(path: Path) -> None:
    """Verify a large file, which the cache stores under its SHA-256; the Hub's client does not."""
    blob = path.resolve()
    if len(blob.name) == 64 and (found := file_sha256(blob)) != blob.name:
        blob.unlink()
        raise DownloadError(f"{path} was damaged (its SHA-256 is {found}) and deleted; try again")


def _tag(part: Path) -> Path:
    """The file that records which version on the server (ETag) a partial download belongs to."""
    return part.with_name(f"{part.name}.tag")


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _download(address: str, part: Path, target: Path) -> None:
    """Download into `part`; `target` is where a user would save the file by hand."""
    failures, pause = 0, PAUSE
    while True:
        before = _size(part)
        try:
            if attempt(address, part):
                return
            reason = "the connection was interrupted"
        except DownloadError:
            raise
        except HTTPError as error:
            if error.code == 416:  # nothing left to send, or another file by now
                part.unlink(missing_ok=True)
            elif error.code not in _TEMPORARY:
                raise DownloadError(
                    f"{address} was refused: {error.code} {error.reason}. If a browser can "
                    f"download it, save it as {target}; MOBILEVIT_MIRROR can name another place "
                    "for the authors' weights"
                ) from error
            reason = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in _DISK_ERRORS:
                raise
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        failures, pause = (0, PAUSE) if _size(part) > before else (failures + 1, 2 * pause)
        if failures >= ATTEMPTS:
            raise DownloadError(
                f"{address} could not be downloaded: {reason}. The part that arrived is kept, and "
                f"the same call resumes it; to do it by hand, save the file as {target}"
            )
        time.sleep(pause)


def attempt(address: str, part: Path) -> bool:
    """Download what is missing, and return whether the file is complete."""
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    start = _size(part)
    headers = {"User-Agent": "mobilevit", "Accept-Encoding": "identity"}
    if start and _tag(part).is_file():
        headers |= {"Range": f"bytes={start}-", "If-Range": _tag(part).read_text()}
    with urlopen(Request(address, headers=headers), timeout=TIMEOUT) as response:
        if response.headers.get_content_type() == "text/html":
            raise DownloadError(
                f"{address} gave a web page instead of a file of weights; does the network require "
                "a login?"
            )
        resumed = response.status == 206
        if not resumed:
            start = 0
            _tag(part).unlink(missing_ok=True)
            tag = response.headers.get("ETag") or response.headers.get("Last-Modified")
            if tag and not tag.startswith("W/"):  # a weak one does not promise the same bytes
                _tag(part).write_text(tag)
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
        with (
            part.open("ab" if resumed else "wb") as file,
            Progress(*columns, console=Console(stderr=True), transient=True) as progress,
        ):
            bar = progress.add_task(part.stem, total=total, completed=start)
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                progress.advance(bar, len(chunk))
            return total is None or file.tell() == total
