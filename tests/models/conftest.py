"""The networks that the tests of `mobilevit.models` look at."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mobilevit.models.layers import initialise
from mobilevit.models.mobilevit import Backbone, BackboneOptions
from mobilevit.models.registry import VARIANTS, build


@pytest.fixture
def busy() -> Callable[..., nn.Module]:
    """Build a network, in evaluation mode, in which every parameter and statistic matters."""

    def make(name: str, **options: object) -> nn.Module:
        torch.manual_seed(0)
        model = build(name, **options).eval()  # type: ignore[arg-type]
        scramble(model)
        return model

    return make


@pytest.fixture
def shallow() -> Backbone:
    """XXS with one layer where it has more: every type of module, little work."""
    torch.manual_seed(0)
    architecture = replace(VARIANTS["mobilevit_xxs"], depths=(1, 1, 1), stage2_blocks=1)
    options = BackboneOptions(dropout=0.0, out_indices=(4,))
    model = Backbone(architecture, options).eval()
    initialise(model)
    return model.to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Reference:
    """What the authors' code computed: its weights, and the outputs by name."""

    tensors: dict[str, Tensor]
    outputs: dict[str, np.ndarray]
    image: Callable[..., Tensor]
    """(height, width, batch=1) -> the images that the outputs belong to."""


@pytest.fixture
def reference(shared: Path) -> Callable[[str], Reference]:
    """Read a stored reference by its name."""
    folder = shared / "reference"
    spec = importlib.util.spec_from_file_location("fill", folder / "fill.py")
    fill: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)

    def read(name: str) -> Reference:
        with np.load(folder / f"{name}.npz") as outputs:
            return Reference(
                {key: torch.as_tensor(array) for key, array in fill.state_dict(name).items()},
                dict(outputs),
                lambda *size: torch.from_numpy(fill.image(*size)),
            )

    return read


def scramble(model: nn.Module) -> None:
    """Replace initial ones and zeros, which hide mistakes, by random numbers."""
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var") or (name.endswith("weight") and tensor.ndim == 1):
            nn.init.uniform_(tensor, 0.5, 1.5)
        elif tensor.ndim == 1:
            nn.init.normal_(tensor, std=0.1)
        elif tensor.ndim > 1:
            nn.init.normal_(tensor, std=1.4 / tensor[0].numel() ** 0.5)
