"""Options that say where a data set is and how its files are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from mobilevit.data.cache import ImageCache
from mobilevit.data.class_names import class_names
from mobilevit.data.decode import Decode
from mobilevit.data.shards.order import POOL
from mobilevit.utils.options import Interval, Options, Positive


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options, name="data"):
    """Where the images are."""

    root: str
    """Classification: class folders, with or without train/ and val/, or images with a table of
    labels; with `name`, where that data set is or is downloaded to; or shards, Parquet or a data
    set of the Hub, see docs/scale.md. Detection: a folder of COCO, Pascal VOC or YOLO, a COCO file
    or a data.yaml. Segmentation: folders of images and masks, COCO, or a known data set."""
    name: str | None = None
    """A data set of torchvision: imagenette, cifar10, flowers102, pets, ..."""
    format: str = "auto"
    """Format of the annotations: coco, voc, folders, table, ..., where a folder could be read in
    several ways."""
    classes: str | None = None
    """Segmentation: names of the masks' values, comma-separated or in a file with one per line."""
    ignore: Annotated[int, Interval(0, 65535, "[]")] = 255
    """Segmentation: the value of pixels without a class, which loss and metrics ignore."""
    split: str | None = None
    """Evaluation: which split to evaluate, such as test; by default the one next to train."""
    index: str | None = None
    """Shards: where their index is, if it is not next to them."""
    pool: Annotated[int, Interval(0)] = POOL
    """Shards: the number of a process's next samples among which a batch is drawn."""
    val_fraction: Annotated[float, Interval(0, 1, "()")] = 0.2
    """Share of each class that is held out, where the folder has no val/; of shards, share of the
    shards."""
    on_bad: Literal["error", "skip"] = "error"
    """What to do about files that cannot be read: stop and name them, or leave them out."""
    on_change: Literal["error", "continue"] = "error"
    """Resuming: what to do if files or annotations have changed since the run began: stop and name
    them, or continue with what there is now."""
    check: bool = True
    """Whether to look at the files before training."""
    decode: Decode = "fast"
    """How training decodes images: JPEGs at a reduced size where a crop allows it ("fast";
    docs/input.md states how close the pixels are), or as evaluation always does ("exact")."""
    cache: str | None = None
    """Training: a folder to store decoded images in, so that later epochs, and other runs on the
    same files, need not decode them again; it changes no pixel. See docs/input.md."""
    cache_gb: Positive = 10.0
    """Its largest size, in gigabytes; once it is full, it takes no more images."""
    workers: Annotated[int, Interval(0)] | None = None
    """Processes that decode; by default from the number of cores."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is not None and self.index is not None:
            raise ValueError("data.index is for shards, not for what data.name opens")
        if self.name is not None and (self.val_fraction, self.on_bad) != (0.2, "error"):
            raise ValueError(
                "data.val_fraction and data.on_bad are for folders of images: a data set that "
                "is opened by data.name has its own splits"
            )

    def open_cache(self) -> ImageCache | None:
        """The cache of decoded images, if there shall be one; DataError if it cannot be written."""
        return None if self.cache is None else ImageCache(self.cache, int(1e9 * self.cache_gb))

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return class_names(self.classes)
