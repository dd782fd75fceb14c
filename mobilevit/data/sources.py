"""The images that people name: files, folders, patterns, addresses, arrays."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mobilevit.data.formats.folders import DataError, images_below
from mobilevit.data.images import IMAGE_EXTENSIONS, ImageError, open_image
from mobilevit.data.preprocessing import preprocess
from mobilevit.models.config import Preprocessing
from mobilevit.utils.urls import is_url, read_url, url_path

Photo: TypeAlias = str | Path | bytes | Image.Image | np.ndarray | Tensor
MAX_DOWNLOAD = 200 * 2**20
"""Bytes that an image from the network may have."""


class Nothing(NamedTuple):
    """A name that stands for no image."""

    name: str
    reason: str


class Prepared(NamedTuple):
    """An image as the network takes it."""

    tensor: Tensor
    """`[3, H, W]`."""
    size: tuple[int, int]
    """(height, width) of the image itself, in pixels."""


class Images(Dataset[Prepared | str]):
    """Images prepared for a network, or the reason why one cannot be read."""

    def __init__(
        self, sources: Sequence[Photo | Nothing], preprocessing: Preprocessing, downloads: Path
    ) -> None:
        """`downloads`: a folder for what comes from the network."""
        self.sources, self.preprocessing, self.downloads = sources, preprocessing, downloads

    def __len__(self) -> int:
        """The number of images, those that cannot be read included."""
        return len(self.sources)

    def __getitem__(self, index: int) -> Prepared | str:
        """One image."""
        try:
            image = self.image(index)
        except ImageError as error:
            return error.reason
        return Prepared(preprocess(image, self.preprocessing), (image.height, image.width))

    def image(self, index: int) -> Image.Image:
        """The upright image; one from the network is fetched once.

        Raises:
            ImageError: it cannot be read, or the server does not give it.
        """
        source = self.sources[index]
        if isinstance(source, Nothing):
            raise ImageError(source.name, source.reason)
        if is_url(source):
            address, source = str(source), self.downloads / str(index)
            if not source.exists():
                try:
                    source.write_bytes(read_url(address, max_bytes=MAX_DOWNLOAD))
                except OSError as error:
                    raise ImageError(address, str(error)) from error
        return open_image(source)


def named_images(photos: Sequence[Photo]) -> list[Photo | Nothing]:
    """The images that names stand for, and the names that stand for none.

    Raises:
        DataError: all stand for none.
    """
    sources: list[Photo | Nothing] = []
    for photo in photos:
        try:
            sources += _expand(photo)
        except DataError as error:
            sources.append(Nothing(str(photo), str(error)))
    nothing = [source for source in sources if isinstance(source, Nothing)]
    if len(nothing) == len(sources):
        raise DataError("\n".join(source.reason for source in nothing) or "no images are named")
    return sources


def _expand(photo: Photo) -> Sequence[Photo]:
    """The images that a name stands for."""
    if not isinstance(photo, str | Path) or is_url(photo):
        return [photo]
    path = Path(photo)
    if path.is_dir():
        found = images_below(path)
        if not found:
            raise DataError(f"{path} has no images in it")
        return found
    if path.exists():
        return [path]
    matches = [Path(name) for name in sorted(glob.glob(str(photo), recursive=True))]
    images = [
        match
        for match in matches
        if match.suffix.lower() in IMAGE_EXTENSIONS and not match.is_dir()
    ]
    if not images:
        raise DataError(f"{photo}: no such file, folder or pattern that an image matches")
    return images


def called(source: Photo | Nothing) -> str:
    """What to call an image in messages."""
    if isinstance(source, Nothing):
        return source.name
    return str(source) if isinstance(source, str | Path) else f"<{type(source).__name__}>"


def stem(source: Photo | Nothing) -> str:
    """What to call the drawn image: a short name that every file system takes."""
    if not isinstance(source, str | Path):
        return "image"
    path = url_path(str(source)) if is_url(source) else source
    return re.sub(r"[^\w.-]+", "_", Path(path).stem)[:60] or "image"
