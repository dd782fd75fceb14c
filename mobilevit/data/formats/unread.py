"""Formats that are recognised, so that a message can say how to convert them, but not read."""

from itertools import islice

from mobilevit.data.formats.files import FileTree
from mobilevit.data.formats.text import json_has

# Name, extensions, words in quotes in one of the first files, how to export it as COCO.
UNREAD_FORMATS: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    (
        "Supervisely", ".json", ("classTitle",),
        'run the app "Export to COCO" in Supervisely, or supervisely.convert.to_coco',
    ),
    (
        "VGG Image Annotator", ".json", ("shape_attributes",),
        "choose Annotation > Export Annotations (COCO format) in VIA",
    ),
    (
        "V7 Darwin", ".json", ("bounding_box", "annotations"),
        "choose COCO as the format of the release in V7, or run `darwin convert coco`",
    ),
    (
        "Datumaro", ".json", ("items", "categories", "label_id"),
        "run `datum convert -if datumaro -f coco`",
    ),
    (
        "Create ML", ".json", ("coordinates", "label", "width"),
        "import it into Roboflow or CVAT, and export COCO there",
    ),
    (
        "FiftyOne", ".json", ("sample_fields",),
        "dataset.export(dataset_type=fiftyone.types.COCODetectionDataset)",
    ),
    (
        "TensorFlow (TFRecord)", ".tfrecord .tfrecords", (),
        "choose COCO instead of TFRecord where it was exported",
    ),
    (
        "SageMaker Ground Truth", ".manifest", (),
        "convert its manifest, for example by importing it into Roboflow",
    ),
)  # fmt: skip
"""Tried in this order, if no format that is read is recognised."""

UNREAD_IMAGES = (
    ".heic", ".heif", ".hif", ".jxl",
    ".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2",
)  # fmt: skip
"""Extensions of photos that are not read."""

_MAX_FILES = 20


def explain_unread(tree: FileTree) -> str | None:
    """How to export a data set of a format that is not read; None where none is recognised."""
    for name, extensions, keys, export in UNREAD_FORMATS:
        files = islice(tree.with_extension(*extensions.split()), _MAX_FILES)
        if any(not keys or json_has(file, b"", *keys) for file in files):
            return (
                f"{tree.root}: is a data set of {name}, which is not read; export it as COCO: "
                f"{export}"
            )
    return None
