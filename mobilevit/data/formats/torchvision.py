"""torchvision's own data sets by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision import datasets

from mobilevit.data.formats.folders import DataError


@dataclass(frozen=True, kw_only=True)
class NamedSet:
    """How torchvision calls a data set and its two splits."""

    kind: str
    """Class in `torchvision.datasets`."""
    train: Mapping[str, Any]
    val: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)


def _by_split(kind: str, val: str, **options: Any) -> NamedSet:
    return NamedSet(kind=kind, train={"split": "train"}, val={"split": val}, options=options)


def _by_flag(kind: str) -> NamedSet:
    return NamedSet(kind=kind, train={"train": True}, val={"train": False})


NAMED_SETS: dict[str, NamedSet] = {
    "cifar10": _by_flag("CIFAR10"),
    "cifar100": _by_flag("CIFAR100"),
    "country211": _by_split("Country211", "valid"),
    "dtd": _by_split("DTD", "val"),
    "fashion_mnist": _by_flag("FashionMNIST"),
    "fgvc_aircraft": _by_split("FGVCAircraft", "val"),
    "flowers102": _by_split("Flowers102", "val"),
    "food101": _by_split("Food101", "test"),
    "gtsrb": _by_split("GTSRB", "test"),
    "imagenette": _by_split("Imagenette", "val"),
    "mnist": _by_flag("MNIST"),
    "pets": NamedSet(kind="OxfordIIITPet", train={"split": "trainval"}, val={"split": "test"}),
    "stl10": _by_split("STL10", "test"),
    "svhn": _by_split("SVHN", "test"),
}
"""Our name -> torchvision's. The second split is what torchvision offers to validate on."""


class TorchvisionSamples:
    """The samples of a torchvision data set, as `Samples`."""

    def __init__(self, name: str, dataset: Any, classes: tuple[str, ...]) -> None:
        """Wrap a data set whose items are (PIL image, label)."""
        self._name, self._dataset, self.classes = name, dataset, classes
        self.labels = _labels(dataset)

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.labels)

    def source(self, index: int) -> Image.Image:
        """The image."""
        image: Image.Image = self._dataset[index][0]
        return image

    def name(self, index: int) -> str:
        """The data set and the place in it."""
        return f"{self._name}[{index}]"


def named_samples(name: str, root: str | Path) -> tuple[TorchvisionSamples, TorchvisionSamples]:
    """Open a data set of torchvision, downloaded to `root` where it is not there yet.

    Returns:
        What to train on, and what to validate on.

    Raises:
        DataError: an unknown name; or the data is not at `root` and cannot be downloaded.
    """
    if name not in NAMED_SETS:
        raise DataError(f"there is no data set named {name!r}; known: {', '.join(NAMED_SETS)}")
    entry = NAMED_SETS[name]
    kind = getattr(datasets, entry.kind)
    Path(root).mkdir(parents=True, exist_ok=True)
    opened = []
    for split in (entry.train, entry.val):
        try:
            opened.append(_open(kind, root, {**split, **entry.options}))
        except (RuntimeError, OSError) as error:  # URLError, a refused or broken download
            raise DataError(f"{name} is not at {root}, and cannot be got: {error}") from error
    train, val = opened
    classes = _classes(train)
    return TorchvisionSamples(name, train, classes), TorchvisionSamples(f"{name}/val", val, classes)


def _open(kind: Any, root: str | Path, options: Mapping[str, Any]) -> Any:
    """The data set as it lies at `root`, or else downloaded to it."""
    try:
        return kind(root, **options, download=False)
    except (RuntimeError, FileNotFoundError):
        return kind(root, **options, download=True)


def _classes(dataset: Any) -> tuple[str, ...]:
    """Class names; a data set of torchvision that has none is given its numbers."""
    names = getattr(dataset, "classes", None)
    if names is None:
        return tuple(str(number) for number in range(max(_labels(dataset)) + 1))
    # Imagenette and others give several names for each class; the first is the common one.
    return tuple(name if isinstance(name, str) else name[0] for name in names)


def _labels(dataset: Any) -> Sequence[int]:
    """All labels, without decoding an image where torchvision keeps them apart."""
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(dataset, attribute, None)
        if values is not None:
            return [int(value) for value in values]
    pairs = getattr(dataset, "_samples", None)
    if pairs is not None:
        return [int(label) for _, label in pairs]
    return [int(dataset[index][1]) for index in range(len(dataset))]
