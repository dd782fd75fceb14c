"""Networks, images and files that exports are tested with."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn

import mobilevit
from mobilevit.commands.export import export, sample_images
from mobilevit.data.preprocessing import frame_image, normalize
from mobilevit.exports.backends.base import FileSummary, Runner
from mobilevit.exports.backends.registry import BACKENDS, open_exported
from mobilevit.exports.backends.web.onnxruntime_web import provide
from mobilevit.exports.options import ExportOptions
from mobilevit.exports.spec import (
    ExportError,
    ExportSpec,
    MissingExtraError,
    file_preprocessing,
)
from mobilevit.exports.toolchain import require
from mobilevit.models.layers import TransformerLayer

ANTS = tuple(f"ant {number}" for number in range(5))
UNUSUAL: dict[str, Any] = {"channel_order": "bgr", "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}
"""Preprocessing in which a forgotten step shows."""
PACKAGES = {
    "onnx": ("onnxscript", "onnxruntime"),
    "coreml": ("coremltools",),
    "litert": ("litert_torch",),
    "executorch": ("executorch.exir",),
    "openvino": ("openvino", "nncf", "onnxscript"),
}
"""Of each format that writes one file."""
FLOAT_LAYER = "network.backbone.stages.4.1.layers.0.attention.qkv.query"
"""Stays in float in the int8 files."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.export)
            # The formats' packages use what their own dependencies deprecate.
            item.add_marker(pytest.mark.filterwarnings("ignore"))


def distinctive(name: str, size: int = 64, *, shallow: bool = False, **preprocessing: Any) -> Any:
    """A network whose predictions differ from image to image.

    `shallow`: two blocks with one transformer layer each, since converters take time for each
    operation. Such a network cannot be loaded again.
    """
    torch.manual_seed(0)
    frame = {"crop": size, "resize": size, **preprocessing}
    model = mobilevit.create_model(name, classes=ANTS, preprocessing=frame).eval()
    model.config = replace(model.config, source="a test")
    if shallow:
        del model.backbone.stage2[1:], model.backbone.stage4[1]
    for stage in model.backbone.stages if shallow else ():
        layers = getattr(stage[-1], "transformer", ())
        for index in reversed(range(1, len(layers))):
            if isinstance(layers[index], TransformerLayer):
                del layers[index]
    with torch.no_grad():
        # Statistics of real activations: with others, all images look alike to a new network.
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the mean of all batches
        coarse = torch.rand(16, 3, 4, 4)
        pixels = nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
        model.train()(normalize(pixels, model.config.preprocessing))
        model.eval()
        task = model.config.task
        heads = [model.head] if hasattr(model, "head") else []
        heads += [head.predict for head in getattr(model, "heads", ())]
        heads += [model.predict] if hasattr(model, "predict") else []
        for head in heads:
            head.weight *= {"classification": 3, "detection": 0.1, "segmentation": 10}[task]
    return model


@pytest.fixture(scope="session")
def network() -> Callable[..., Any]:
    """Make a network of five classes: `network(name, size=64, **preprocessing)`."""
    return cache_networks()


def cache_networks() -> Callable[..., Any]:
    made: dict[str, Any] = {}

    def make(name: str, size: int = 64, **options: Any) -> Any:
        key = repr((name, size, sorted(options.items())))
        if key not in made:
            made[key] = distinctive(name, size, **options)
        return made[key]

    return make


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    """Three images that differ."""
    found = sample_images()
    return [*found, ImageOps.invert(found[0])]


MODELS: dict[str, dict[str, Any]] = {
    "classification": {"name": "mobilevit_xxs", **UNUSUAL},
    # At 128 pixels there are more anchors than suppression by matrices looks at.
    "detection": {"name": "ssdlite_mobilevit_xxs", "size": 128, **UNUSUAL},
    "segmentation": {"name": "deeplabv3_mobilevitv2_050"},
}


@dataclass(frozen=True)
class Made:
    """A file, the network in it, and what was asked for."""

    network: Any
    spec: ExportSpec
    summary: FileSummary

    @property
    def path(self) -> Path:
        return self.summary.path

    def open(self, threads: int = 1) -> Runner:
        return open_exported(self.path, threads=threads)

    def pixels(self, images: list[Image.Image]) -> np.ndarray:
        """Images as the file takes them."""
        rule = file_preprocessing(self.network.config.preprocessing, self.spec.dynamic)
        return np.stack([np.asarray(frame_image(image, rule)) for image in images])

    def bytes(self) -> bytes:
        files = [self.path] if self.path.is_file() else sorted(self.path.rglob("*"))
        return b"".join(file.read_bytes() for file in files if file.is_file())


@pytest.fixture(scope="session")
def exported(
    network: Callable[..., Any],
    images: list[Image.Image],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Made]:
    """Export a task's small network once: `exported("onnx", "detection", "fp16")`.

    The variants are `fp32`, `fp16`, `batch`, `size` (raw) and the modes of quantization.
    """
    calibration = tuple(images)

    @cache
    def make(backend: str, task: str = "classification", variant: str = "fp32") -> Made:
        for package in PACKAGES[backend]:
            try:
                require(package, extra=backend)
            except MissingExtraError as error:
                pytest.skip(str(error))
        modes = ("int8", "int8-weights", "palette4")
        spec = ExportSpec(
            dynamic=variant if variant in ("batch", "size") else None,  # type: ignore[arg-type]
            raw=variant == "size",
            precision="fp16" if variant == "fp16" else "fp32",
            quantize=variant if variant in modes else None,
            calibration=calibration,
            float_layers=frozenset({FLOAT_LAYER}),
        )
        model = network(shallow=True, **MODELS[task])
        path = tmp_path_factory.mktemp(backend) / f"{task}-{variant}{BACKENDS[backend].suffix}"
        return Made(model, spec, BACKENDS[backend].write(model, spec, path))

    return make


PAGES: dict[str, dict[str, Any]] = {
    "classification": {
        "name": "mobilevit_xxs",
        "resize": 72,
        "channel_order": "bgr",
        "mean": (0.4, 0.5, 0.6),
        "interpolation": "bicubic",
    },
    "detection": {"name": "ssdlite_mobilevitv2_050", "size": 96},
    "segmentation": {"name": "deeplabv3_mobilevitv2_050"},
}


class Page(NamedTuple):
    """A page, and the network that is in it."""

    folder: Path
    network: Any


@pytest.fixture(scope="session")
def made_page(
    network: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Page]:
    """Export a network of a task as a page, once: `made_page("detection")`.

    That of segmentation takes images of any size.
    """
    try:
        provide()
    except ExportError as error:
        pytest.skip(f"no ONNX Runtime Web: {error}")

    @cache
    def make(task: str) -> Page:
        model = network(**PAGES[task])
        folder = tmp_path_factory.mktemp("pages") / task
        dynamic: Any = "size" if task == "segmentation" else None
        export(model, ExportOptions(out=str(folder), format="web", dynamic=dynamic))
        return Page(folder, model)

    return make


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for screenshots: MOBILEVIT_SCREENSHOTS, to look at them."""
    folder = os.environ.get("MOBILEVIT_SCREENSHOTS")
    path = Path(folder) if folder else tmp_path_factory.mktemp("screenshots")
    path.mkdir(parents=True, exist_ok=True)
    return path
