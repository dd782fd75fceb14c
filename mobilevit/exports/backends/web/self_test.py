"""Python's prediction for a page's test image, and what a browser needs to compare its own."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import numpy as np
import torch
from PIL import Image

from mobilevit.data.preprocessing import image_to_tensor
from mobilevit.exports.backends.base import Runner
from mobilevit.exports.verify import TOLERANCES
from mobilevit.models.fuse import fuse
from mobilevit.models.registry import Network
from mobilevit.tasks import get_task


def expected_prediction(run: Runner, model: Network, frame: Image.Image) -> dict[str, Any]:
    """The prediction that a page should make: a quantized file's own, otherwise PyTorch's.

    `frame` is an RGB image of the file's size. `Expected` in the page's `types.js` describes the
    fields.
    """
    metadata = run.metadata
    task, config = get_task(metadata.config.task).export, metadata.config
    if metadata.quantize is not None:
        outputs = [torch.from_numpy(part) for part in run(np.asarray(frame)[None])]
        prediction = task.reference_of_file(outputs, config.num_classes)
        return {"by": run.runtime, "tolerance": None, **prediction}
    tolerance = TOLERANCES[metadata.precision]
    with torch.inference_mode():
        images = image_to_tensor(frame, config.preprocessing)[None]
        prediction = task.reference(fuse(model), images, tolerance)
    version = importlib.metadata.version("torch")
    return {"by": f"PyTorch {version}", "tolerance": tolerance, **prediction}
