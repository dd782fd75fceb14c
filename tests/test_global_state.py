"""What commands leave of the global state of a process: all as it was."""

from __future__ import annotations

import os
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mobilevit
from mobilevit.data.options import DataOptions
from tests.training.runs import STANDARD, colour_images, small

pytestmark = pytest.mark.slow


def snapshot() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),
        "python": random.getstate(),
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": torch.backends.cudnn.benchmark,
    }


def test_commands_leave_the_process_as_it_was(tmp_path: Path) -> None:
    """In generators, warning filters, environment and settings of torch."""
    images = colour_images(tmp_path / "images", count=4)
    run, file = tmp_path / "run", tmp_path / "model.pt"
    model, data = run / "model", DataOptions(root=str(images), workers=1)
    steps = {
        "train": lambda: small(images, run, epochs=1, workers=1, sampler=STANDARD),
        "resume": lambda: small(images, run, epochs=2, workers=1, sampler=STANDARD, resume=True),
        "load": lambda: mobilevit.load(model),
        "predict": lambda: mobilevit.predict(model, images / "red"),
        "evaluate": lambda: mobilevit.evaluate(model, data=data),
        "check": lambda: mobilevit.check(images),
        "convert": lambda: mobilevit.convert(model, file, to="authors"),
        "load a checkpoint": lambda: mobilevit.load(file, classes=("a", "b", "c")),
        "describe": lambda: mobilevit.describe(model="mobilevit_xxs"),
    }
    for name, step in steps.items():
        before = snapshot()
        step()
        after = snapshot()
        assert {key for key in before if before[key] != after[key]} == set(), name


def test_a_run_with_an_error_does_too(tmp_path: Path) -> None:
    before = snapshot()
    with pytest.raises(ValueError, match="nowhere"):
        small(tmp_path / "nowhere", tmp_path / "run")
    assert snapshot() == before


@pytest.mark.export
def test_an_export_does_too(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    model = mobilevit.create_model("mobilevit_xxs", classes=("a", "b"))
    before = snapshot()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        mobilevit.export(model, mobilevit.ExportOptions(out=str(tmp_path / "model.onnx")))
    assert snapshot() == before
