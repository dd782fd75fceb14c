"""torchvision's own data sets by name."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import ParsedDataset

_TRAIN = {"split": "train"}
_FLAGS = {"train": True}, {"train": False}
TORCHVISION_SETS: dict[str, tuple[str, Mapping[str, Any], Mapping[str, Any]]] = {
    "cifar10": ("CIFAR10", *_FLAGS),
    "cifar100": ("CIFAR100", *_FLAGS),
    "country211": ("Country211", _TRAIN, {"split": "valid"}),
    "dtd": ("DTD", _TRAIN, {"split": "val"}),
    "fashion_mnist": ("FashionMNIST", *_FLAGS),
    "fgvc_aircraft": ("FGVCAircraft", _TRAIN, {"split": "val"}),
    "flowers102": ("Flowers102", _TRAIN, {"split": "val"}),
    "food101": ("Food101", _TRAIN, {"split": "test"}),
    "gtsrb": ("GTSRB", _TRAIN, {"split": "test"}),
    "imagenette": ("Imagenette", _TRAIN, {"split": "val"}),
    "mnist": ("MNIST", *_FLAGS),
    "pets": ("OxfordIIITPet", {"split": "trainval"}, {"split": "test"}),
    "stl10": ("STL10", _TRAIN, {"split": "test"}),
    "svhn": ("SVHN", _TRAIN, {"split": "test"}),
}
"""Name -> class in `torchvision.datasets`, and its arguments for training and validation."""


class TorchvisionImages:
    """The images of a torchvision data set whose items are (PIL image, label)."""

    def __init__(self, name: str, dataset: Any) -> None:
        self._name, self._dataset = name, dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Image.Image:
        image: Image.Image = self._dataset[index][0]
        return image

    def name(self, index: int) -> str:
        return f"{self._name}[{index}]"


def read_torchvision(name: str, root: str | Path) -> list[ParsedDataset]:
    """Open the training and validation splits of a torchvision data set, downloaded if necessary.

    Args:
        name: one of `TORCHVISION_SETS`.
        root: the folder where it is, or is downloaded to.

    Raises:
        DataError: the name is unknown, or the data is missing and cannot be downloaded.
    """
    from torchvision import datasets

    if name not in TORCHVISION_SETS:
        known = ", ".join(TORCHVISION_SETS)
        raise DataError(f"there is no data set named {name!r}; known: {known}")
    class_name, *arguments = TORCHVISION_SETS[name]
    Path(root).mkdir(parents=True, exist_ok=True)
    parsed: list[ParsedDataset] = []
    for split, options in zip(("train", "val"), arguments, strict=True):
        create = partial(getattr(datasets, class_name), root, **options)
        try:
            try:
                dataset = create(download=False)
            except (RuntimeError, FileNotFoundError):
                dataset = create(download=True)
        except (RuntimeError, OSError) as error:  # URLError, a refused or broken download
            raise DataError(
                f"{name} is not at {root}, and cannot be downloaded: {error}"
            ) from error
        labels = _labels(dataset)
        parsed.append(
            ParsedDataset(
                root=Path(root),
                format=name,
                display_name=name,
                images=TorchvisionImages(name if split == "train" else f"{name}/val", dataset),
                classes=parsed[0].classes if parsed else _classes(dataset, labels),
                labels=np.array(labels, np.int32),
                splits={split: range(len(labels))},
            )
        )
    return parsed


def _classes(dataset: Any, labels: Sequence[int]) -> tuple[str, ...]:
    """Class names, or numbers where torchvision has none."""
    names = getattr(dataset, "classes", None)
    if names is None:
        return tuple(str(number) for number in range(max(labels) + 1))
    # Imagenette and others give several names for each class; the first is the common one.
    return tuple(name if isinstance(name, str) else name[0] for name in names)


def _labels(dataset: Any) -> list[int]:
    """All labels, without decoding images where labels are stored apart."""
    for attribute in ("targets", "labels", "_labels"):
        if (values := getattr(dataset, attribute, None)) is not None:
            return [int(value) for value in values]
    pairs = getattr(dataset, "_samples", None) or map(dataset.__getitem__, range(len(dataset)))
    return [int(label) for _, label in pairs]
