"""Downloads of weights: resumed, checked, kept, so that the second use needs no network.

Files at an address go to the folder of `torch.hub` (`TORCH_HOME` moves it), Hub repositories to the
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

from mobilevit.utils.files import file_sha256, lock_file
from mobilevit.utils.urls import TIMEOUT

log = logging.getLogger(__name__)

ATTEMPTS = 5
PAUSE = 1.0
"""Seconds before the second attempt; twice as many before each further one."""
_CHUNK = 1 << 20
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO)
_AGAIN = (408, 425, 429, 500, 502, 503, 504)


class DownloadError(OSError):
    """Weights that could not be downloaded; the message says why, and what to do."""


def fetch(url: str, *, address: str | None = None, sha256: str | None = None) -> Path:
    """Download a file once; later calls find it.

    A download that is cut goes on where it stopped, also in a later process, unless the file has
    changed meanwhile.

    Args:
        url: what the file is known by; http or https.
        address: where to fetch it, if not there: a mirror.
        sha256: the file's digest, if it is known; then a file that was here is checked too.

    Returns:
        Where the file lies.

    Raises:
        DownloadError: it is not to be had, or is not the file of that digest.
    """
    key = hashlib.sha256(url.encode()).hexdigest()[:12]
    name = Path(urlsplit(url).path).name or "weights"
    target = Path(torch.hub.get_dir()) / "checkpoints" / "mobilevit" / key / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with lock_file(target):  # several processes may want it at once
        if target.is_file():
            if sha256 is None or (found := file_sha256(target)) == sha256:
                return target
            log.warning("%s has changed (its SHA-256 is %s): it is fetched again", target, found)
        part = target.with_name(f"{name}.part")
        log.info("downloading %s to %s", address or url, target)
        _download(address or url, part, by_hand=target)
        if sha256 is not None and (found := file_sha256(part)) != sha256:
            part.unlink()
            _tag(part).unlink(missing_ok=True)
            raise DownloadError(
                f"{address or url} is not the expected file: its SHA-256 is {found}, not {sha256}; "
                "nothing was kept"
            )
        part.replace(target)
        _tag(part).unlink(missing_ok=True)
    return target


def from_hub(repository: str, *, revision: str | None = None) -> Path:
    """Download a model repository's configuration and weights, by huggingface_hub.

    What is in the Hub's cache is used without asking the Hub for a newer state; a `revision` that
    is not there yet is fetched.

    Args:
        repository: `owner/name`.
        revision: a branch, tag or commit; by default the main branch.

    Returns:
        The folder where they lie.

    Raises:
        DownloadError: there is no such repository, or it has no weights, or no way to it.
    """
    for name in ("config.json", "preprocessor_config.json"):
        _from_hub(repository, name, revision)
    for name in ("model.safetensors", "pytorch_model.bin"):
        if path := _from_hub(repository, name, revision):
            _check_blob(path)
            return path.parent
    raise DownloadError(
        f"the Hub's {repository} has neither model.safetensors nor pytorch_model.bin"
    )


def _from_hub(repository: str, name: str, revision: str | None) -> Path | None:
    """One file of a repository, or None where the repository has no such file."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        cached = try_to_load_from_cache(repository, name, revision=revision)
        if cached is not None:  # a path, or a mark that there is no such file
            return Path(cached) if isinstance(cached, str) else None
        return Path(hf_hub_download(repository, name, revision=revision))
    except LocalEntryNotFoundError as error:
        raise DownloadError(
            f"there is no file or folder {repository} here, and as a Hub id it is neither in the "
            f"cache nor to be reached: {error.__cause__ or error}"
        ) from error
    except EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:  # as all of huggingface_hub's errors are
        raise DownloadError(
            f"there is no file or folder {repository} here, and the Hub refuses it: {error}"
        ) from error


def _check_blob(path: Path) -> None:
    """Large files lie under their SHA-256: compare it, since the Hub's client does not."""
    blob = path.resolve()
    if len(blob.name) == 64 and (found := file_sha256(blob)) != blob.name:
        blob.unlink()
        raise DownloadError(
            f"{path} was damaged (its SHA-256 is {found}) and is removed; try again"
        )


def _tag(part: Path) -> Path:
    """Beside a file that is not whole: which state of the server's file it is a part of."""
    return part.with_name(f"{part.name}.tag")


def _download(address: str, part: Path, *, by_hand: Path) -> None:
    """Fetch all bytes into `part`, in as many attempts as it takes, up to `ATTEMPTS` in vain."""
    vain, pause = 0, PAUSE
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            if attempt(address, part):
                return
            reason = "the connection was cut"
        except DownloadError:
            raise
        except HTTPError as error:
            if error.code == 416:  # nothing left to send, or another file by now
                part.unlink(missing_ok=True)
            elif error.code not in _AGAIN:
                raise DownloadError(
                    f"{address} was refused: {error.code} {error.reason}. If a browser can fetch "
                    f"it, save it as {by_hand}; MOBILEVIT_MIRROR can name another place for the "
                    "authors' weights"
                ) from error
            reason = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in _OF_THE_DISK:
                raise
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        after = part.stat().st_size if part.is_file() else 0
        vain, pause = (0, PAUSE) if after > before else (vain + 1, 2 * pause)
        if vain >= ATTEMPTS:
            raise DownloadError(
                f"{address} could not be downloaded: {reason}. What has come is kept, and the same "
                f"call goes on with it; by hand, save the file as {by_hand}"
            )
        time.sleep(pause)


def attempt(address: str, part: Path) -> bool:
    """Fetch what is missing; whether that was all of it."""
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    begun = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "mobilevit", "Accept-Encoding": "identity"}
    if begun and _tag(part).is_file():
        headers |= {"Range": f"bytes={begun}-", "If-Range": _tag(part).read_text()}
    with urlopen(Request(address, headers=headers), timeout=TIMEOUT) as response:
        if response.headers.get_content_type() == "text/html":
            raise DownloadError(
                f"{address} gave a web page where a file of weights was expected; is there a login "
                "page between here and there?"
            )
        resumed = response.status == 206
        if not resumed:
            begun = 0
            _tag(part).unlink(missing_ok=True)
            tag = response.headers.get("ETag") or response.headers.get("Last-Modified")
            if tag and not tag.startswith("W/"):  # a weak one does not promise the same bytes
                _tag(part).write_text(tag)
        length = response.headers.get("Content-Length")
        total = None if length is None else begun + int(length)
        columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
        with (
            part.open("ab" if resumed else "wb") as file,
            Progress(*columns, console=Console(stderr=True), transient=True) as progress,
        ):
            bar = progress.add_task(part.stem, total=total, completed=begun)
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                progress.advance(bar, len(chunk))
            return total is None or file.tell() == total
