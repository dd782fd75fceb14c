"""What is stored with a network's weights: its options, classes and preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, TypeAlias

from mobilevit.utils.options import Options

TaskName: TypeAlias = Literal["classification", "detection", "segmentation"]
ChannelOrder: TypeAlias = Literal["rgb", "bgr"]
ResizeMode: TypeAlias = Literal["crop", "stretch", "shortest_edge"]
Interpolation: TypeAlias = Literal["bilinear", "bicubic"]

RESIZE_MODES: dict[TaskName, tuple[ResizeMode, ...]] = {
    "classification": ("crop", "stretch"),
    "detection": ("stretch",),
    "segmentation": ("stretch", "shortest_edge"),
}
"""Detection and segmentation must not cut anything off an image, so they have no `crop`."""

MAX_ASPECT_RATIO = 16
"""Longer images are cut (`crop`) or squeezed (`shortest_edge`): a strip would take gigabytes."""

SIZE_MULTIPLE = 32
"""`shortest_edge` rounds sides down to multiples of this, the coarsest stride of the networks."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing(Options):
    """How images are prepared for given weights; `mobilevit.data.preprocessing` applies it.

    `resize_mode` is one of:

    * `crop`: the short side is resized to `resize`, the long side in proportion, rounded down; then
      a square of `crop` pixels is cut from the centre (offsets at half a pixel round to even, as in
      torchvision: 288x289 gives rows 16 to 271 and columns 16 to 271);
    * `stretch`: the image is resized to a square of `crop` pixels, whatever its shape;
    * `shortest_edge`: the short side is resized to `resize`, the long side in proportion, and both
      are rounded down to a multiple of 32 (400x300 at 512 gives 672x512). `crop` equals `resize`.

    Values become `(v / 255 - mean) / std`, v in 0..255; the authors use neither mean nor std.

    >>> Preprocessing(resize_mode="shortest_edge", resize=512, crop=512).size(300, 400)
    (512, 672)
    """

    channel_order: ChannelOrder = "rgb"
    resize_mode: ResizeMode = "crop"
    resize: int = 288
    crop: int = 256
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    assumed: tuple[str, ...] = ()
    """Fields that the file of weights does not state and that were filled in from its layout."""

    as_pixels: ClassVar[bool] = False
    """Whether values stay uint8 in 0..255, for exported files that convert them themselves."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.crop <= self.resize:
            raise ValueError(f"crop must lie in 1..resize ({self.resize}), not {self.crop}")
        if self.resize_mode == "shortest_edge" and not SIZE_MULTIPLE <= self.crop == self.resize:
            raise ValueError(
                f"with resize_mode shortest_edge, resize and crop must be one number of at least "
                f"{SIZE_MULTIPLE}, not {self.resize} and {self.crop}"
            )

    def with_fields(self, changes: Mapping[str, Any]) -> Preprocessing:
        """Change fields, which then no longer count as assumed."""
        known = {item.name for item in fields(self)} - {"assumed"}
        if unknown := sorted(changes.keys() - known):
            raise ValueError(
                f"preprocessing has no {', '.join(unknown)}; it has {', '.join(sorted(known))}"
            )
        assumed = tuple(name for name in self.assumed if name not in changes)
        return replace(self, **changes, assumed=assumed)

    def at(self, size: int) -> Preprocessing:
        """Change the input size; the margin around the crop keeps its proportion."""
        return replace(self, crop=size, resize=max(size, round(size * self.resize / self.crop)))

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that an image of this size is resized and cropped to."""
        if self.resize_mode != "shortest_edge":
            return self.crop, self.crop
        short = min(height, width)
        longest = MAX_ASPECT_RATIO * self.resize
        tall, wide = (min(side * self.resize // short, longest) for side in (height, width))
        return tall // SIZE_MULTIPLE * SIZE_MULTIPLE, wide // SIZE_MULTIPLE * SIZE_MULTIPLE


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """All that is needed besides weights to rebuild and use a network; stored as `config.json`."""

    model: str
    """A model name; see `list_models`."""
    num_classes: int
    options: Mapping[str, Any] = field(default_factory=dict)
    """The options of `create_model` that differ from its defaults."""
    task: TaskName = "classification"
    classes: tuple[str, ...] | None = None
    """Class names in the order of the logits; None if they are unknown."""
    category_ids: tuple[int, ...] | None = None
    """Detection: the classes' ids in the annotations of the data set, such as COCO's."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    source: str = "new weights"
    """Where the weights come from, in words."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Results measured with these weights, by name."""

    def __post_init__(self) -> None:
        modes = RESIZE_MODES[self.task]
        if self.preprocessing.resize_mode not in modes:
            raise ValueError(
                f"{self.model} cannot use preprocessing.resize_mode "
                f"{self.preprocessing.resize_mode}: in {self.task} it must be {' or '.join(modes)}"
            )
        if self.category_ids is not None and len(self.category_ids) != self.num_classes:
            raise ValueError(
                f"{len(self.category_ids)} category_ids for {self.num_classes} classes"
            )
        if self.classes is None:
            return
        if len(self.classes) != self.num_classes:
            off_by_one = abs(len(self.classes) - self.num_classes) == 1
            raise ValueError(
                f"{len(self.classes)} class names for {self.num_classes} outputs"
                + ("; does one of the two count a background class?" if off_by_one else "")
            )
        if twice := sorted({name for name in self.classes if self.classes.count(name) > 1}):
            raise ValueError(f"duplicate class names: {', '.join(twice)}")
