"""Networks and photos that exports are tested with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image, ImageOps
from torch import nn

import mobilevit
from mobilevit.commands.export import export, sample_images
from mobilevit.exports.backends.web.onnxruntime_web import provide
from mobilevit.exports.spec import ExportError

ANTS = tuple(f"ant {number}" for number in range(5))


def told_apart(name: str, size: int = 64, **preprocessing: Any) -> Any:
    """A network whose answers differ from photo to photo."""
    torch.manual_seed(0)
    frame = {"crop": size, "resize": size, **preprocessing}
    model = mobilevit.create_model(name, classes=ANTS, preprocessing=frame).eval()
    model.config = replace(model.config, source="a test")
    with torch.no_grad():
        # Statistics of real activations: with others, all photos look alike to a new network.
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the mean of all batches
        coarse = torch.rand(16, 3, 4, 4)
        model.train()(nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1))
        model.eval()
        heads = [model.head] if hasattr(model, "head") else []
        heads += [head.predict for head in getattr(model, "heads", ())]
        heads += [model.predict] if hasattr(model, "predict") else []
        for head in heads:
            head.weight *= 0.1 if model.config.task == "detection" else 10
    return model


@pytest.fixture(scope="session")
def network() -> Callable[..., Any]:
    """Make a network of five classes: `network(name, size=64, **preprocessing)`."""
    return told_apart


@pytest.fixture(scope="session")
def photos() -> list[Image.Image]:
    """Three images that differ."""
    found = sample_images()
    return [*found, ImageOps.invert(found[0])]


PAGES: dict[str, dict[str, Any]] = {
    # Values and frames of a kind that a forgotten step would show in.
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


class MadePage(NamedTuple):
    """A page, and the network that is in it."""

    folder: Path
    network: Any


@pytest.fixture(scope="session")
def made_page(
    network: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], MadePage]:
    """Export a network of a task as a page, once: `made_page("detection")`.

    That of segmentation takes images of any size.
    """
    try:
        provide()
    except ExportError as error:
        pytest.skip(f"no ONNX Runtime Web: {error}")

    @cache
    def make(task: str) -> MadePage:
        model = network(**PAGES[task])
        folder = tmp_path_factory.mktemp("pages") / task
        dynamic: Any = "size" if task == "segmentation" else None
        export(model, out=str(folder), format="web", dynamic=dynamic)
        return MadePage(folder, model)

    return make
