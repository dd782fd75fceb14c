"""Class names of the usual data sets, and those that users give."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
ADE20K_CLASSES = tuple(Path(__file__).with_name("ade20k.txt").read_text().splitlines())


def imagenet_classes() -> tuple[str, ...]:
    """The 1000 class names of ImageNet-1k in the usual order, from tench to toilet tissue."""
    from torchvision.models import MobileNet_V2_Weights

    return tuple(MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"])


def coco_classes() -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The 80 class names of COCO, and their numbers in its annotations, 1 to 90 with gaps."""
    from torchvision.models.detection import SSDLite320_MobileNet_V3_Large_Weights

    names = SSDLite320_MobileNet_V3_Large_Weights.COCO_V1.meta["categories"]
    used = [(name, i) for i, name in enumerate(names) if name not in ("__background__", "N/A")]
    return tuple(name for name, _ in used), tuple(number for _, number in used)


def unique_names(names: Sequence[str] | Mapping[str, str]) -> tuple[str, ...]:
    """Append its index to every name that occurs more than once; a mapping is index -> name.

    ImageNet's lists often have two cranes, a bird and a machine.

    >>> unique_names(["crane", "heron", "crane"])
    ('crane [0]', 'heron', 'crane [2]')
    """
    if isinstance(names, Mapping):
        names = [names[str(index)] for index in range(len(names))]
    counts = Counter(names)
    return tuple(
        f"{name} [{index}]" if counts[name] > 1 else name for index, name in enumerate(names)
    )


def class_names(value: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Parse class names: a sequence, a comma-separated list, or a file with one name per line.

    `imagenet1k`, `coco`, `voc` and `ade20k` stand for the 1000, 80, 21 (with background) and 150
    names of these data sets.

    >>> class_names("cat, dog")
    ('cat', 'dog')
    """
    if value is None or not isinstance(value, str):
        return None if value is None else tuple(value)
    match value:
        case "imagenet1k":
            return imagenet_classes()
        case "coco":
            return coco_classes()[0]
        case "voc":
            return VOC_CLASSES
        case "ade20k":
            return ADE20K_CLASSES
    # A file's names may contain commas; it may begin with a byte order mark.
    try:
        is_file = Path(value).is_file()
    except OSError:  # a list longer than a file's name may be
        is_file = False
    parts = Path(value).read_text("utf-8-sig").splitlines() if is_file else value.split(",")
    names = tuple(name.strip() for name in parts if name.strip())
    if not names:
        raise ValueError(f"no class names in {value!r}")
    return names
