"""Images and a model that several commands are tried on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mobilevit.checkpoints.create import create_model
from mobilevit.checkpoints.folder import save


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three classes of seven noisy images of one colour each."""
    draw = np.random.default_rng(0)
    for label, name in enumerate(("blue", "green", "red")):
        for number in range(7):
            values = draw.integers(0, 120, (40, 50, 3), np.uint8)
            values[:, :, 2 - label] += 130
            file = tmp_path / "images" / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(file)
    return tmp_path / "images"


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that tells the colours apart by luck or not, and always the same."""
    torch.manual_seed(0)
    model = create_model("mobilevit_xxs", classes=["red", "green", "blue", "grey"])
    model.config = replace(model.config, preprocessing=model.config.preprocessing.at(32))
    torch.nn.init.normal_(model.head.weight, std=3.0)
    return save(model.eval(), tmp_path_factory.mktemp("models") / "colours")
