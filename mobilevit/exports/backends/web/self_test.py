"""Python's answer of a page's test photo, with all that a browser needs to compare its own with it.

`mobilevit.exports.verify` compares a file with a network, which a page does not have. So what it
looks up there is written out: candidates of boxes, and classes that are nearly as likely as a
pixel's likeliest.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mobilevit.data.preprocessing import image_to_tensor
from mobilevit.exports.backends.registry import Runner
from mobilevit.exports.spec import FileFacts
from mobilevit.exports.verify import BOUNDS
from mobilevit.models.fuse import fuse
from mobilevit.models.registry import Network
from mobilevit.models.segmentation import Segmenter
from mobilevit.models.ssdlite import SSDLite, decode
from mobilevit.tasks.detection.loss_and_postprocess import PRESETS, detections

WIDER = 3
"""Classes of a pixel are listed that are less likely than the likeliest by up to so many bounds."""


def expected_answer(run: Runner, network: Network, frame: Image.Image) -> dict[str, Any]:
    """What a page should say of an image; `Expected` in its `types.js` says what is in it.

    Of a quantised file that is the file's own answer, else PyTorch's.

    Args:
        run: the file, opened in its runtime.
        network: the network that it was made of.
        frame: an RGB image of the file's size.
    """
    facts = run.facts
    if facts.quantize is not None:
        said = run(np.asarray(frame)[None])
        return {"by": run.runtime, "bound": None, **_of_file(facts, said)}
    bound = BOUNDS[facts.precision]
    fused = fuse(network)
    tensors = image_to_tensor(frame, facts.config.preprocessing)[None]
    with torch.inference_mode():
        if isinstance(fused, SSDLite):
            answer = _of_detector(fused, tensors, bound)
        elif isinstance(fused, Segmenter):
            answer = _of_segmenter(fused, tensors, bound)
        else:
            answer = {"probabilities": fused(tensors)[0].softmax(0).tolist()}
    return {"by": f"PyTorch {importlib.metadata.version('torch')}", "bound": bound, **answer}


def _of_file(facts: FileFacts, said: Sequence[np.ndarray]) -> dict[str, Any]:
    """What a file says of one image."""
    if facts.config.task == "classification":
        return {"probabilities": said[0][0].tolist()}
    if facts.config.task == "segmentation":
        return {"mask": {**_runs(said[0][0]), "limit": 0.0, "close": []}}
    boxes, scores, labels = (torch.from_numpy(part[0]) for part in said)
    exists = labels >= 0
    found = _rows(labels[exists], scores[exists], boxes[exists])
    floors = [PRESETS["later"].score] * facts.config.num_classes
    return {"boxes": _boxes(found, found, floors)}


def _of_detector(model: SSDLite, tensors: Tensor, bound: float) -> dict[str, Any]:
    """What a network finds in one image `[1, 3, H, W]`."""
    rule = PRESETS["later"]
    anchors = model.anchors(*tensors.shape[-2:])
    raw = model(tensors)
    (truth,) = detections(raw, anchors, [(1, 1)], rule)
    corners = decode(raw.offsets[0], anchors).clamp(0, 1)  # [A, 4]
    likely = raw.logits[0].softmax(-1)[:, 1:]  # [A, K]
    floors = torch.full_like(likely[0], rule.score)
    if rule.before is not None and rule.before < len(likely):
        floors = torch.maximum(floors, likely.topk(rule.before, dim=0).values[-1])
    least = rule.score
    if len(truth.scores) == rule.most:  # what is less likely has no place in the file's answer
        least = float(truth.scores[-1])
    anchor, label = (likely > least - bound).nonzero(as_tuple=True)
    candidates = _rows(label, likely[anchor, label], corners[anchor])
    found = _rows(truth.labels, truth.scores, truth.boxes.as_subclass(Tensor))
    return {"boxes": _boxes(found, candidates, floors.tolist())}


def _rows(labels: Tensor, scores: Tensor, corners: Tensor) -> list[list[float]]:
    """Boxes as lists: label, score, x1, y1, x2, y2."""
    values = torch.cat((scores[:, None], corners), dim=1).double().round(decimals=6)
    return [[label, *row] for label, row in zip(labels.tolist(), values.tolist(), strict=True)]


def _boxes(
    found: list[list[float]], candidates: list[list[float]], floors: list[float]
) -> dict[str, Any]:
    overlap = PRESETS["later"].overlap
    return {"overlap": overlap, "floors": floors, "found": found, "candidates": candidates}


def _of_segmenter(model: Segmenter, tensors: Tensor, bound: float) -> dict[str, Any]:
    """What a network says of the pixels of one image `[1, 3, H, W]`."""
    probabilities = model(tensors)[0].softmax(0)  # [K, H, W]
    likeliest = probabilities.max(dim=0)
    less = (likeliest.values - probabilities).flatten(1)  # [K, H * W]
    limit = WIDER * bound
    others = less <= limit
    others.scatter_(0, likeliest.indices.flatten()[None], False)
    label, pixel = others.nonzero(as_tuple=True)
    rows = zip(pixel.tolist(), label.tolist(), less[label, pixel].tolist(), strict=True)
    close = [[p, k, round(gap, 6)] for p, k, gap in rows]
    return {"mask": {**_runs(likeliest.indices.numpy()), "limit": limit, "close": close}}


def _runs(mask: np.ndarray) -> dict[str, Any]:
    """A mask `[H, W]` as classes and how many pixels in a row have them."""
    flat = mask.reshape(-1).astype(np.int64)
    starts = np.flatnonzero(np.diff(flat, prepend=-1))
    lengths = np.diff(starts, append=flat.size)
    pairs = zip(flat[starts].tolist(), lengths.tolist(), strict=True)
    height, width = mask.shape
    return {"height": height, "width": width, "runs": list(chain.from_iterable(pairs))}
