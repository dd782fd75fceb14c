"""Networks and photos that exports are tested with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps
from torch import nn

import mobilevit
from mobilevit.commands.export import sample_photos

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
    """Three pictures that differ."""
    found = sample_photos()
    return [*found, ImageOps.invert(found[0])]
