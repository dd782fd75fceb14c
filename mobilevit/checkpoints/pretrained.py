"""Every MobileViT checkpoint that the authors published: what it is, how good, and where it lies.

Figures are those that the authors print; for segmentation, parameters are without the auxiliary
head. v1's ImageNet, COCO and VOC weights of 2021 expect blue-green-red pixels; the others were made
by later code, which read red-green-blue.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mobilevit.checkpoints import authors
from mobilevit.checkpoints.keymap import CheckpointError, Layout
from mobilevit.data.class_names import class_names, coco_classes
from mobilevit.models.config import ModelConfig, Preprocessing
from mobilevit.models.registry import changed_options

BASE = "https://docs-assets.developer.apple.com/ml-research/models/"
MIRROR = "MOBILEVIT_MIRROR"
"""Environment variable: an address that stands in for `BASE`."""

LICENCE = "Apple sample code licence"

_V1_2021 = authors.PREPROCESSING[authors.V1]
_V1_LATER = Preprocessing()
_V2 = authors.PREPROCESSING[authors.V2]
_SSD_V1 = authors.PREPROCESSING[authors.SSD_V1]
_SSD_V2 = authors.PREPROCESSING[authors.SSD_V2]
_V2_384 = replace(_V2, resize=384, crop=384)


@dataclass(frozen=True, kw_only=True)
class Published:
    """One checkpoint."""

    name: str
    """What `load` and `create_model` take: a model name, and after a dot where it comes from."""
    data: str
    """What it was trained on."""
    metric: str
    value: float
    """As published: per cent."""
    size: int | None
    """Input height and width in pixels, where it is stated."""
    parameters: float | None
    """In millions, as published."""
    path: str
    """Behind `BASE`."""
    preprocessing: Preprocessing | None = None
    """None where this library has no such network."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of `create_model` that the file does not show."""
    classes: Literal["imagenet1k", "coco", "voc", "ade20k"] | None = None
    """Whose classes it has."""
    sha256: str | None = None
    """Of the file, where it is known."""
    licence: str = LICENCE

    @property
    def model(self) -> str:
        """The model name."""
        return self.name.partition(".")[0]

    @property
    def task(self) -> str:
        """What it does, by its model's name."""
        for head, task in _TASKS.items():
            if self.model.startswith(head):
                return task
        return "video classification" if "k400" in self.name else "classification"

    @property
    def url(self) -> str:
        """Where it lies."""
        return BASE + self.path

    @property
    def mirror(self) -> str:
        """Where to fetch it: as `url`, unless the environment names another place."""
        base = os.environ.get(MIRROR)
        return f"{base.rstrip('/')}/{self.path}" if base else self.url

    def complete(self, config: ModelConfig) -> ModelConfig:
        """What the file's tensors say, and what is known of this file besides.

        Raises:
            CheckpointError: the file holds another network.
        """
        if config.model != self.model:
            raise CheckpointError(f"the file of {self.name} holds {config.model}")
        classes, numbers = config.classes, config.category_ids
        if self.classes == "coco":
            classes, numbers = coco_classes()
        elif self.classes:
            classes = class_names(self.classes)
        return replace(
            config,
            options=changed_options(config.model, {**config.options, **self.options}),
            classes=classes,
            category_ids=numbers,
            preprocessing=self.preprocessing or config.preprocessing,
            source=f"{self.name}, {self.url}, {self.licence}",
        )


_TASKS = {
    "ssdlite_": "detection",
    "maskrcnn_": "detection",
    "deeplabv3_": "segmentation",
    "pspnet_": "segmentation",
}


def _classifiers() -> Iterable[Published]:
    def v1(
        name: str, value: float, parameters: float, path: str, preprocessing: Preprocessing
    ) -> Published:
        return Published(
            name=name,
            data="ImageNet-1k",
            metric="top-1",
            classes="imagenet1k",
            value=value,
            size=256,
            parameters=parameters,
            path=path,
            preprocessing=preprocessing,
        )

    for size, value, parameters in (("xxs", 69.0, 1.3), ("xs", 74.7, 2.3), ("s", 78.3, 5.6)):
        path = f"cvnets/classification/mobilevit_{size}.pt"
        yield v1(f"mobilevit_{size}.apple_in1k", value, parameters, path, _V1_2021)
    name, augmented = "mobilevit_s.apple_in1k", "cvnets-v2/examples/range_augment"
    path = f"{augmented}/classification/mobilevit_small.pt"
    yield v1(f"{name}_rangeaugment", 78.2, 5.6, path, replace(_V1_LATER, resize=256))
    path = f"{augmented}/distillation/teacher_resnet101_student_mobilevit.pt"
    yield v1(f"{name}_distilled", 79.4, 5.6, path, _V1_LATER)
    yield Published(
        name="mobilevit_s.apple_k400",
        data="Kinetics-400",
        metric="top-1",
        value=68.38,
        size=None,
        parameters=5.2,
        path="cvnets-v2/video_classification/mobilevitv1-small-st.pt",
    )
    folder = "cvnets-v2/classification/mobilevitv2"
    for tag, data, where, values in (
        ("in1k", "ImageNet-1k", "imagenet1k", _V2_IN1K),
        ("in21k_in1k", "ImageNet-21k, then 1k", "imagenet21k_to_1k", _V2_IN21K),
    ):
        for width, (at_256, at_384) in values.items():
            for pixels, value in ((256, at_256), (384, at_384)):
                yield Published(
                    name=f"{_v2(width)}.apple_{tag}" + ("_384" if pixels == 384 else ""),
                    data=data,
                    metric="top-1",
                    classes="imagenet1k",
                    value=value,
                    size=pixels,
                    parameters=_V2_PARAMETERS[width],
                    path=f"{folder}/{where}/{pixels}x{pixels}/mobilevitv2-{width}.pt",
                    preprocessing=_V2 if pixels == 256 else _V2_384,
                )


def _detectors() -> Iterable[Published]:
    def coco(
        name: str, value: float, parameters: float, path: str, rule: Preprocessing | None
    ) -> Published:
        return Published(
            name=f"{name}.apple_coco",
            data="COCO 2017",
            metric="box AP",
            value=value,
            size=320,
            parameters=parameters,
            path=path,
            preprocessing=rule,
            classes="coco",
        )

    for size, value, parameters in (("xxs", 19.9, 1.8), ("xs", 24.8, 2.7), ("s", 27.9, 5.7)):
        path = f"cvnets/detection/ssd_mobilevit_{size}_320.pt"
        yield coco(f"ssdlite_mobilevit_{size}", value, parameters, path, _SSD_V1)
    for width, value, parameters in (
        ("0.5", 21.24, 2.0),
        ("0.75", 24.57, 3.6),
        ("1.0", 26.47, 5.6),
        ("1.25", 27.85, 8.2),
        ("1.5", 28.83, 11.3),
        ("1.75", 29.52, 14.9),
        ("2.0", 30.21, 19.1),
    ):
        path = f"cvnets-v2/detection/mobilevitv2/coco-ssd-mobilevitv2-{width}.pt"
        yield coco(f"ssdlite_{_v2(width)}", value, parameters, path, _SSD_V2)
    path = "cvnets-v2/examples/range_augment/detection/maskrcnn_mobilevit.pt"
    yield replace(coco("maskrcnn_mobilevit_s", 42.0, 27.35, path, None), size=None)


def _segmenters() -> Iterable[Published]:
    def one(
        name: str,
        tag: str,
        value: float,
        parameters: float | None,
        path: str,
        *,
        layout: Layout,
        output_stride: int,
    ) -> Published:
        is_voc = tag.startswith("voc")
        return Published(
            name=f"{name}.apple_{tag}",
            data="VOC 2012" if is_voc else "ADE20K",
            metric="mIoU",
            value=value,
            size=512,
            parameters=parameters,
            path=path,
            preprocessing=authors.PREPROCESSING[layout],
            options={"output_stride": output_stride},
            classes="voc" if is_voc else "ade20k",
        )

    layout = authors.DEEPLAB_V1_2021
    for size, value, parameters in (("xxs", 72.8, 1.9), ("xs", 77.1, 2.9), ("s", 79.3, 6.4)):
        name = f"deeplabv3_mobilevit_{size}"
        path = f"cvnets/segmentation/{name}.pt"
        yield one(name, "voc", value, parameters, path, layout=layout, output_stride=16)
    folder = "cvnets-v2/segmentation"
    layout, name = authors.DEEPLAB_V1, "deeplabv3_mobilevit_s"
    path = f"{folder}/pascalvoc/deeplabv3-mobilevitv1.pt"
    yield one(name, "voc_os8", 79.44, 8.5, path, layout=layout, output_stride=8)
    path = "cvnets-v2/examples/range_augment/segmentation/ade20k/deeplabv3_mobilevit.pt"
    yield one(name, "ade20k_rangeaugment", 38.5, None, path, layout=layout, output_stride=8)
    for head, data, values in _V2_SEGMENTATION:
        layout = {"deeplabv3": authors.DEEPLAB_V2, "pspnet": authors.PSP_V2}[head]
        where, stride = {"voc": ("pascalvoc", 16), "ade20k": ("ade20k", 8)}[data]
        for width, (value, parameters) in values.items():
            path = f"{folder}/{where}/mobilevitv2/{head}-mobilevitv2-{width}.pt"
            name = f"{head}_{_v2(width)}"
            yield one(name, data, value, parameters, path, layout=layout, output_stride=stride)


def _v2(width: str) -> str:
    return f"mobilevitv2_{round(100 * float(width)):03d}"


_V2_PARAMETERS = {
    "0.5": 1.4,
    "0.75": 2.9,
    "1.0": 4.9,
    "1.25": 7.5,
    "1.5": 10.6,
    "1.75": 14.3,
    "2.0": 18.4,
}
_V2_IN1K = {  # width -> top-1 at 256 px, at 384 px
    "0.5": (70.18, 72.14),
    "0.75": (75.56, 76.98),
    "1.0": (78.09, 79.68),
    "1.25": (79.65, 80.94),
    "1.5": (80.38, 81.50),
    "1.75": (80.84, 82.04),
    "2.0": (81.17, 82.17),
}
_V2_IN21K = {"1.5": (81.46, 82.60), "1.75": (81.94, 82.93), "2.0": (82.36, 83.41)}
_V2_SEGMENTATION = (  # head, data, width -> mIoU, millions of parameters
    (
        "deeplabv3",
        "ade20k",
        {
            "0.5": (31.93, 6.3),
            "0.75": (34.70, 9.6),
            "1.0": (37.06, 13.4),
            "1.25": (38.42, 17.7),
            "1.5": (38.91, 22.6),
            "1.75": (39.53, 28.1),
            "2.0": (40.94, 34.0),
        },
    ),
    (
        "deeplabv3",
        "voc",
        {"0.5": (75.07, 6.2), "1.0": (78.94, 13.3), "1.25": (79.68, 17.7), "1.5": (80.30, 22.6)},
    ),
    (
        "pspnet",
        "ade20k",
        {
            "0.5": (31.77, 3.6),
            "0.75": (35.22, 6.2),
            "1.0": (36.57, 9.4),
            "1.25": (38.76, 13.2),
            "1.5": (38.74, 17.6),
            "1.75": (39.82, 22.5),
        },
    ),
    (
        "pspnet",
        "voc",
        {
            "0.5": (74.62, 3.6),
            "0.75": (77.44, 6.2),
            "1.0": (78.92, 9.4),
            "1.25": (79.40, 13.2),
            "1.5": (79.93, 17.5),
        },
    ),
)

PUBLISHED: dict[str, Published] = {
    entry.name: entry
    for entries in (_classifiers(), _detectors(), _segmenters())
    for entry in entries
}
