"""What belongs to a network's weights, and its form in `config.json`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from mobilevit.checkpoints.keymap import CheckpointError
from mobilevit.data.mask_sets import ADE20K_CLASSES
from mobilevit.data.preprocessing import Fit, Preprocessing
from mobilevit.models.registry import Task

FORMAT = 1

CLASSES: dict[Task, int] = {"classification": 1000, "detection": 80, "segmentation": 21}
"""Of ImageNet-1k, COCO and VOC: what a network is made for where nothing is said."""

FITS: dict[Task, tuple[Fit, ...]] = {
    "classification": ("crop", "squash"),
    "detection": ("squash",),
    "segmentation": ("squash", "short"),
}
"""How images may get their size: in detection and segmentation nothing may be cut off."""

CUSTOM: dict[Task, Preprocessing] = {
    "classification": Preprocessing(),
    "detection": Preprocessing(fit="squash", resize=320, crop=320),
    "segmentation": Preprocessing(fit="short", resize=512, crop=512),
}
"""How images are prepared for new weights: as the authors did.

In segmentation as their later code: images keep their shape, as the crops do that are trained on.
"""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """All that `config.json` holds: enough to rebuild a network, feed it and read its answer."""

    model: str
    """A model name; see `list_models`."""
    num_classes: int
    options: Mapping[str, Any] = field(default_factory=dict)
    """The options of `create_model` that differ from its defaults."""
    task: Task = "classification"
    classes: tuple[str, ...] | None = None
    """Class names in the order of the logits; None where nobody has stated them."""
    category_ids: tuple[int, ...] | None = None
    """Detection: the classes' numbers in the source's own annotations, such as COCO's."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    source: str = "new weights"
    """Where the weights come from, in words."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Figures measured on these weights, by name."""

    def __post_init__(self) -> None:
        """Refuse names that do not count up to the classes.

        Raises:
            ValueError: another number of names than of logits, or a name given twice.
        """
        if self.preprocessing.fit not in FITS[self.task]:
            raise ValueError(
                f"{self.model} cannot work with preprocessing.fit {self.preprocessing.fit}: in "
                f"{self.task} it must be {' or '.join(FITS[self.task])}"
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
            raise ValueError(f"class names given twice: {', '.join(twice)}")

    def to_json(self, *, weights: str) -> str:
        """The text of `config.json`; `weights` is the digest of the tensors beside it."""
        return json.dumps({"format": FORMAT, **asdict(self), "weights": weights}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, file: str) -> tuple[ModelConfig, str]:
        """Read `config.json`: the configuration, and the digest of the weights it belongs to.

        Raises:
            CheckpointError: no such JSON, of a later format, or with unknown or missing fields.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise CheckpointError(f"{file} is not JSON: {error}") from error
        if not isinstance(values, dict) or "format" not in values:
            raise CheckpointError(f"{file} is not the configuration of a MobileViT model folder")
        if values.pop("format") != FORMAT:
            raise CheckpointError(f"{file} is of a format that this version does not know")
        weights = values.pop("weights", "")
        known = {item.name for item in fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise CheckpointError(f"{file} has unknown fields: {', '.join(unknown)}")
        try:
            preprocessing: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in values.pop("preprocessing", {}).items()
            }
            for key in ("classes", "category_ids"):
                if values.get(key) is not None:
                    values[key] = tuple(values[key])
            config = cls(preprocessing=Preprocessing(**preprocessing), **values)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{file}: {error}") from error
        return config, weights


class Stated(NamedTuple):
    """What a folder of another layout says beside its weights."""

    options: dict[str, Any]
    """Options of `create_model`."""
    classes: tuple[str, ...] | None
    """None where it names none."""
    preprocessing: Preprocessing | None
    """None where it says nothing."""


def imagenet_classes() -> tuple[str, ...]:
    """The 1000 class names of ImageNet-1k in the usual order, from tench to toilet tissue."""
    from torchvision.models import MobileNet_V2_Weights

    return tuple(MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"])


def coco_classes() -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The 80 class names of COCO, and their numbers in its annotations, 1 to 90 with gaps."""
    from torchvision.models.detection import SSDLite320_MobileNet_V3_Large_Weights

    every = SSDLite320_MobileNet_V3_Large_Weights.COCO_V1.meta["categories"]
    kept = [(name, i) for i, name in enumerate(every) if name not in ("__background__", "N/A")]
    return tuple(name for name, _ in kept), tuple(number for _, number in kept)


def voc_classes() -> tuple[str, ...]:
    """The 21 class names of PASCAL VOC 2012, background ahead of its 20 kinds of objects."""
    from torchvision.models.segmentation import DeepLabV3_MobileNet_V3_Large_Weights

    weights = DeepLabV3_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1
    return "background", *weights.meta["categories"][1:]


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The same names, with its number behind each that is given more than once.

    ImageNet's lists often have two cranes, a bird and a machine.
    """
    counts = Counter(names)
    return tuple(
        f"{name} [{index}]" if counts[name] > 1 else name for index, name in enumerate(names)
    )


def class_names(value: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Names as people state them: a sequence, names with commas between, or a file with one a line.

    `imagenet1k` stands for the 1000 names of ImageNet-1k, `coco` for COCO's 80, `voc` for the 21 of
    PASCAL VOC 2012, background ahead.

    Raises:
        ValueError: a file without names.
    """
    if value is None or not isinstance(value, str):
        return None if value is None else tuple(value)
    if value == "imagenet1k":
        return imagenet_classes()
    if value == "coco":
        return coco_classes()[0]
    if value == "voc":
        return voc_classes()
    if value == "ade20k":
        return ADE20K_CLASSES
    # A file's names may hold commas; it may begin with a byte order mark.
    try:
        is_file = Path(value).is_file()
    except OSError:  # a list longer than a file's name may be
        is_file = False
    parts = Path(value).read_text("utf-8-sig").splitlines() if is_file else value.split(",")
    names = tuple(name.strip() for name in parts if name.strip())
    if not names:
        raise ValueError(f"no class names in {value!r}")
    return names
