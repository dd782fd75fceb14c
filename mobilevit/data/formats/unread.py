"""Formats that are recognised, so that a message can say how to convert them, but not read."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from mobilevit.data.formats.files import FileTree

_HEAD_BYTES = 1 << 16
_MAX_FILES = 20


class UnreadFormat(NamedTuple):
    """A format, and how a data set in it becomes COCO's JSON."""

    name: str
    found: Callable[[FileTree], bool]
    export: str


def explain_unread(tree: FileTree) -> str | None:
    """How to export a data set of a format that is not read; None where none is recognised."""
    for format in UNREAD_FORMATS:
        if format.found(tree):
            return (
                f"{tree.root}: is a data set of {format.name}, which is not read; export it as "
                f"COCO: {format.export}"
            )
    return None


def _named(*endings: str) -> Callable[[FileTree], bool]:
    """Whether a file's path has one of these ends, in lower case."""
    return lambda tree: any(path.lower().endswith(endings) for path in tree.others)


def _contains(extension: str, *keys: str) -> Callable[[FileTree], bool]:
    """Whether all of `keys` are at the beginning of one of the first files with an extension."""
    wanted = [key.encode() for key in keys]
    return lambda tree: any(
        all(key in head for key in wanted) for head in _heads(tree.with_extension(extension))
    )


def _heads(files: list[Path]) -> Iterator[bytes]:
    for file in islice(files, _MAX_FILES):
        try:
            with file.open("rb") as opened:
                yield opened.read(_HEAD_BYTES)
        except OSError:
            continue


UNREAD_FORMATS = (
    UnreadFormat(
        "Supervisely",
        _contains(".json", '"classTitle"'),
        'run the app "Export to COCO" in Supervisely, or supervisely.convert.to_coco',
    ),
    UnreadFormat(
        "VGG Image Annotator",
        _contains(".json", '"shape_attributes"'),
        "choose Annotation > Export Annotations (COCO format) in VIA",
    ),
    UnreadFormat(
        "V7 Darwin",
        _contains(".json", '"bounding_box"', '"annotations"'),
        "choose COCO as the format of the release in V7, or run `darwin convert coco`",
    ),
    UnreadFormat(
        "Datumaro",
        _contains(".json", '"items"', '"categories"', '"label_id"'),
        "run `datum convert -if datumaro -f coco`",
    ),
    UnreadFormat(
        "Create ML",
        _contains(".json", '"coordinates"', '"label"', '"image'),
        "import it into Roboflow or CVAT, and export COCO there",
    ),
    UnreadFormat(
        "FiftyOne",
        _contains(".json", '"sample_fields"'),
        "dataset.export(dataset_type=fiftyone.types.COCODetectionDataset)",
    ),
    UnreadFormat(
        "TensorFlow (TFRecord)",
        _named(".tfrecord", ".tfrecords"),
        "choose COCO instead of TFRecord where it was exported",
    ),
    UnreadFormat(
        "SageMaker Ground Truth",
        _named(".manifest"),
        "convert its manifest, for example by importing it into Roboflow",
    ),
)
"""Tried in this order, if no format that is read is recognised."""
