"""From what a user names as weights to a file or folder on this machine."""

from __future__ import annotations

import difflib
import logging
import re
from pathlib import Path
from urllib.parse import urldefrag

from mobilevit.checkpoints.download import fetch, from_hub
from mobilevit.checkpoints.keymap import CheckpointError
from mobilevit.checkpoints.pretrained import PUBLISHED, Published
from mobilevit.models.registry import list_models
from mobilevit.utils.urls import is_url

log = logging.getLogger(__name__)

_HUB = re.compile(r"(?:hf-hub:|hf_hub:)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_FILES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".json")


def located(source: str | Path) -> tuple[Path, Published | None]:
    """Find weights, and download them where they are not here yet.

    Args:
        source: a file or folder that exists; a name of `PUBLISHED`; a Hub id, `owner/name` or
            `owner/name@revision`; or an address, `https://...`, which may end in
            `#sha256=` and the file's digest.

    Returns:
        Where they lie, and which of the published checkpoints they are, if by such a name.

    Raises:
        FileNotFoundError: there is no such file, and it is none of the others.
        DownloadError: it could not be downloaded.
        CheckpointError: it is published, but of a network that this version does not have.
    """
    path, name = Path(source), str(source)
    if path.exists():
        return path, None
    if isinstance(source, Path):
        raise FileNotFoundError(f"there is no file or folder {path}")
    if name in PUBLISHED:
        entry = PUBLISHED[name]
        if entry.model not in list_models() or entry.preprocessing is None:
            raise CheckpointError(f"{name} is published, but this version has no such network")
        log.info("%s is under the %s", name, entry.licence)
        return fetch(entry.url, address=entry.mirror, sha256=entry.sha256), entry
    if is_url(name):
        address, fragment = urldefrag(name)
        digest = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
        if fragment and not digest:
            raise ValueError(f"{name} may end in #sha256= and 64 digits, not in #{fragment}")
        return fetch(address, sha256=digest[1].lower() if digest else None), None
    hub = _HUB.fullmatch(name)
    # runs/photos is more likely a slip than someone's weights where there is a folder runs
    if hub and path.suffix not in _FILES and not path.parent.is_dir():
        return from_hub(hub[1], revision=hub[2]), None
    near = difflib.get_close_matches(name, PUBLISHED, n=3)
    raise FileNotFoundError(
        f"there is no file or folder {name}"
        + (f"; of the published weights, did you mean {' or '.join(near)}?" if near else "")
    )
