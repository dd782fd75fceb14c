"""Images as inputs of commands: files, folders, patterns, URLs, arrays."""

import glob
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mobilevit.data.errors import DataError
from mobilevit.data.formats.files import has_image_extension, list_files
from mobilevit.data.image_formats import recognise
from mobilevit.data.images import ImageError, open_image
from mobilevit.data.preprocessing import preprocess
from mobilevit.models.config import Preprocessing
from mobilevit.utils.urls import is_url, read_url, url_path

log = logging.getLogger(__name__)

ImageInput: TypeAlias = str | Path | bytes | Image.Image | np.ndarray | Tensor
MAX_DOWNLOAD = 200 * 2**20
"""Maximum size of a downloaded image, in bytes."""


class MissingImage(NamedTuple):
    """An input without an image, reported in its place."""

    name: str
    reason: str


class PreparedImage(NamedTuple):
    """A preprocessed image."""

    tensor: Tensor
    """`[3, H, W]`."""
    size: tuple[int, int]
    """(height, width) of the original image, in pixels."""


class ImageInputs(Dataset[PreparedImage | str]):
    """Images preprocessed for a network, or the reason why one cannot be read."""

    def __init__(
        self,
        sources: Sequence[ImageInput | MissingImage],
        preprocessing: Preprocessing,
        downloads: Path,
    ) -> None:
        """`downloads`: a folder for images that are downloaded."""
        self.sources, self.preprocessing, self.downloads = sources, preprocessing, downloads

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> PreparedImage | str:
        try:
            image = self.image(index)
        except ImageError as error:
            return error.reason
        return PreparedImage(preprocess(image, self.preprocessing), (image.height, image.width))

    def image(self, index: int) -> Image.Image:
        """The upright image; one at a URL is downloaded once."""
        source = self.sources[index]
        if isinstance(source, MissingImage):
            raise ImageError(source.name, source.reason)
        if is_url(source):
            url, source = str(source), self.downloads / str(index)
            if not source.exists():
                try:
                    source.write_bytes(read_url(url, max_bytes=MAX_DOWNLOAD))
                except OSError as error:
                    raise ImageError(url, str(error)) from error
        return open_image(source)


def expand_inputs(inputs: Sequence[ImageInput]) -> list[ImageInput | MissingImage]:
    """Replace folders and patterns by their images, and inputs without images by the reason.

    Raises:
        DataError: no input has images.
    """
    sources: list[ImageInput | MissingImage] = []
    for entry in inputs:
        try:
            sources += _expand(entry)
        except (DataError, OSError) as error:  # a folder that cannot be listed, an impossible name
            name = str(entry)
            reason = f"{name}: {error.strerror}" if isinstance(error, OSError) else str(error)
            sources.append(MissingImage(name, reason))
    missing = [source for source in sources if isinstance(source, MissingImage)]
    if len(missing) == len(sources):
        raise DataError("\n".join(source.reason for source in missing) or "no images are given")
    return sources


def _expand(entry: ImageInput) -> Sequence[ImageInput | MissingImage]:
    if not isinstance(entry, str | Path) or is_url(entry):
        return [entry]
    path = Path(entry)
    if path.is_dir():
        images, others = list_files(path)
        files, problem = images + others, "there are no images in this folder"
    elif path.exists():
        return [path]
    else:
        files = [file for file in glob.glob(str(entry), recursive=True) if not Path(file).is_dir()]
        problem = "no such file or folder, and no pattern that matches an image"
    missing = MissingImage(str(entry), f"{entry}: {problem}")
    return _select_images(entry, map(Path, sorted(files))) or [missing]


def _select_images(entry: ImageInput, files: Iterable[Path]) -> list[ImageInput | MissingImage]:
    """The images among the files of a folder or pattern, by their names or else their content.

    Images in formats that are not read are reported in their place, other files by their endings.
    """
    found: list[ImageInput | MissingImage] = []
    others: Counter[str] = Counter()
    for file in files:
        named = has_image_extension(file.name) and (file.is_file() or file.is_symlink())
        reason = "" if named else recognise(file)
        if reason is None:
            others[file.suffix.lower() or "without an ending"] += 1
        else:
            found.append(MissingImage(str(file), reason) if reason else file)
    if others:
        endings = ", ".join(f"{count} {ending}" for ending, count in others.most_common())
        log.warning("%s: %d files are no images: %s", entry, others.total(), endings)
    return found


def display_name(source: ImageInput | MissingImage) -> str:
    """An image's name in messages.

    >>> display_name(Path("photos/cat.jpg")), display_name(b"...")
    ('photos/cat.jpg', '<bytes>')
    """
    if isinstance(source, MissingImage):
        return source.name
    return str(source) if isinstance(source, str | Path) else f"<{type(source).__name__}>"


def file_stem(source: ImageInput | MissingImage) -> str:
    """A short file name for results of an image, without extension and for any file system.

    >>> file_stem("https://example.org/my%20cat.jpg?size=large")
    'my_cat'
    """
    if not isinstance(source, str | Path):
        return "image"
    path = url_path(str(source)) if is_url(source) else source
    return re.sub(r"[^\w.-]+", "_", Path(path).stem)[:60] or "image"
