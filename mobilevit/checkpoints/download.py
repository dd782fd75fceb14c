"""Downloads of weights, which are verified and cached.

Files from URLs go to the folder of `torch.hub` (`TORCH_HOME` moves it), Hub repositories to the
Hub's own cache (`HF_HOME`; `HF_ENDPOINT` names a mirror, `HF_HUB_OFFLINE` forbids the network).
"""

import errno
import hashlib
import json
import logging
from pathlib import Path
from urllib.parse import urlsplit

import torch

from mobilevit.checkpoints.adapter import JSON_FILES
from mobilevit.checkpoints.keymap import CheckpointError
from mobilevit.utils.files import file_sha256, lock_file, replace_file
from mobilevit.utils.urls import network_errors

log = logging.getLogger(__name__)

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of weight files in folders, in order of preference."""
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO)


class DownloadError(OSError):
    """Weights that could not be downloaded; the message says why, and what to do."""


def fetch(url: str, *, address: str | None = None, sha256: str | None = None) -> Path:
    """Download a file unless it is cached.

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
        log.info("downloading %s to %s", address, target)
        with replace_file(target) as fresh:
            _download(address, fresh, target)
            if sha256 is not None and (found := file_sha256(fresh)) != sha256:
                raise DownloadError(
                    f"{address} is not the expected file: its SHA-256 is {found}, not {sha256}; "
                    "the download was deleted"
                )
    return target


def _download(address: str, fresh: Path, target: Path) -> None:
    """Download into `fresh`; `target` is where a user would save the file by hand."""
    from huggingface_hub.file_download import http_get  # takes up broken connections again

    try:
        with fresh.open("wb") as file, network_errors():
            http_get(address, file, displayed_filename=target.name)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise
        code = getattr(getattr(error, "response", None), "status_code", None)
        raise DownloadError(
            f"{address} could not be downloaded: {code or error}. If a browser can download it, "
            f"save it as {target}; MOBILEVIT_MIRROR can name another place for the authors' weights"
        ) from error
    with fresh.open("rb") as file:
        if file.read(1) == b"<":
            raise DownloadError(
                f"{address} gave a web page instead of a file of weights; does the network require "
                "a login?"
            )


def from_hub(repository: str, *, revision: str | None = None) -> Path:
    """Download a model repository, `owner/name`, and return its folder in the Hub's cache.

    Cached files are used without asking the Hub for newer ones. `revision` is a branch, tag or
    commit, by default the main branch.
    """
    for name in JSON_FILES:
        _hub_file(repository, name, revision)
    for name in WEIGHT_FILES:
        parts = [_hub_file(repository, name, revision)]
        if parts == [None] and (index := _hub_file(repository, f"{name}.index.json", revision)):
            parts = [_hub_file(repository, part.name, revision) for part in shards(index)]
        for path in filter(None, parts):
            blob = path.resolve()  # named by its SHA-256, which the Hub's client does not check
            if len(blob.name) == 64 and (found := file_sha256(blob)) != blob.name:
                blob.unlink()
                raise DownloadError(
                    f"{path} was damaged (its SHA-256 is {found}) and deleted; try again"
                )
        if parts[0] is not None:
            return parts[0].parent
    raise DownloadError(f"the Hub's {repository} has neither {' nor '.join(WEIGHT_FILES)}")


def shards(index: Path) -> list[Path]:
    """The files that an index of weights lists, in the format of transformers, next to it."""
    try:
        names = {Path(name) for name in json.loads(index.read_text())["weight_map"].values()}
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is no index of files of weights") from error
    return sorted(index.with_name(name.name) for name in names)


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
