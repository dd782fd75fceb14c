"""`mobilevit evaluate`: how good a model is on labelled pictures."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import device as Device

from mobilevit.checkpoints.create import opened, stated_classes
from mobilevit.checkpoints.files import replacing
from mobilevit.commands.evaluate_boxes import DetectionEvaluation
from mobilevit.commands.evaluate_classes import Evaluation
from mobilevit.commands.evaluate_masks import SegmentationEvaluation
from mobilevit.data.box_transforms import DetectionEvaluationSet
from mobilevit.data.boxes import BoxSamples, relabelled
from mobilevit.data.check import readable
from mobilevit.data.cores import compute_device, computing_on, cores, share_cores
from mobilevit.data.datasets import EvaluationSet, FolderSamples, RelabelledSamples, Samples
from mobilevit.data.find_boxes import box_evaluation
from mobilevit.data.find_masks import mask_evaluation
from mobilevit.data.folder import evaluation_split, relabel
from mobilevit.data.loader import EvaluationLoader
from mobilevit.data.mask_transforms import SegmentationEvaluationSet
from mobilevit.data.named import named_samples
from mobilevit.data.preprocessing import Preprocessing
from mobilevit.models.deeplabv3 import Segmenter
from mobilevit.models.fuse import fuse
from mobilevit.models.ssdlite import SSDLite
from mobilevit.models.variants import Network
from mobilevit.tasks.classification import ClassificationMetrics, judge
from mobilevit.tasks.detection import PRESETS, Preset
from mobilevit.tasks.detection_metrics import DetectionMetrics, judge_detector
from mobilevit.tasks.segmentation import SegmentationMetrics, judge_segmenter
from mobilevit.training.options import DataOptions

log = logging.getLogger(__name__)

AnyEvaluation: TypeAlias = Evaluation | DetectionEvaluation | SegmentationEvaluation


def evaluate(
    model: str | Path | Network,
    *,
    data: DataOptions,
    sizes: Sequence[int] | None = None,
    classes: str | Sequence[str] | None = None,
    preprocessing: dict[str, Any] | None = None,
    postprocessing: Preset = "later",
    boundary: int = 0,
    batch_size: int = 64,
    threads: int | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    out: str | None = None,
) -> AnyEvaluation:
    """Judge a model on labelled pictures; every picture counts once.

    Where the folder has a val/ beside its train/, that is judged; else all of it. The pictures'
    classes must be classes of the model, by name; the model may have more.

    Args:
        model: whatever `load` reads; in Python also a network.
        data: where the pictures are.
        sizes: picture sizes (crops) in pixels; by default the model's own. The margin around the
            crop keeps its share.
        classes: class names in the order of the outputs, where the model has none: separated by
            commas, or a text file with one a line.
        preprocessing: fields of the model's preprocessing to override, such as channel_order.
        postprocessing: detection: which of the authors' rules turns outputs into boxes, that of
            2021 or the later one.
        boundary: segmentation: also judge the pixels within so many of true boundaries apart.
        batch_size: pictures at a time.
        threads: compute threads on a CPU; by default from the number of cores.
        device: where to compute; auto takes a GPU where there is one.
        out: JSON file to write all figures to.

    Raises:
        DataError: the pictures can not be used; the message names which and why.
        CheckpointError: the model can not be read.
        ValueError: the model's classes are not known.
    """
    if postprocessing not in PRESETS:
        raise ValueError(f"postprocessing must be 2021 or later, not {postprocessing!r}")
    if boundary < 0:
        raise ValueError(f"boundary must be at least 0 (pixels), not {boundary}")
    network, name = opened(model, classes=classes, preprocessing=preprocessing)
    known = stated_classes(network, name)
    data.refuse_foreign(network.config.task)
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)  # now, not after the work
    on = compute_device(device)
    default_threads, default_workers = share_cores(cores(), on_gpu=on.type != "cpu")
    workers = default_workers if data.workers is None else data.workers
    fused = fuse(network).to(on)
    rule = network.config.preprocessing
    rules = {size: rule.at(size) for size in sizes or [rule.crop]}

    def batches(dataset: Any) -> EvaluationLoader:
        return EvaluationLoader(dataset, batch_size=batch_size, workers=workers)

    result: AnyEvaluation
    with computing_on(threads or default_threads):
        if isinstance(fused, SSDLite):
            boxes = _boxes(data, known)
            found: dict[int, DetectionMetrics] = {}
            for size, one in rules.items():
                loader = batches(DetectionEvaluationSet(boxes, one))
                found[size] = judge_detector(
                    fused, loader, boxes, rule=PRESETS[postprocessing], device=on
                )
            result = DetectionEvaluation(model=name, by_size=found)
        elif isinstance(fused, Segmenter):
            masks = mask_evaluation(
                data.root,
                format=data.format,
                classes=known,
                ignore=data.ignore,
                on_bad=data.on_bad,
            )
            seen: dict[int, SegmentationMetrics] = {}
            for size, one in rules.items():
                loader = batches(SegmentationEvaluationSet(masks, one))
                seen[size] = judge_segmenter(fused, loader, masks, device=on, boundary=boundary)
            result = SegmentationEvaluation(model=name, by_size=seen)
        else:
            result = Evaluation(
                model=name, by_size=_classified(fused, data, known, rules, batches, on)
            )
    if out is not None:
        with replacing(Path(out)) as fresh:
            fresh.write_text(json.dumps(result.to_json(), indent=1) + "\n")
    return result


def _classified(
    fused: Any,
    data: DataOptions,
    classes: tuple[str, ...],
    rules: dict[int, Preprocessing],
    batches: Any,
    device: Device,
) -> dict[int, ClassificationMetrics]:
    """A classifier's figures by size."""
    samples = _samples(data, classes)
    return {
        size: judge(fused, batches(EvaluationSet(samples, rule)), classes=classes, device=device)
        for size, rule in rules.items()
    }


def _boxes(data: DataOptions, classes: tuple[str, ...]) -> BoxSamples:
    """The pictures to judge a detector on."""
    from mobilevit.training.detection import readable_boxes

    found = box_evaluation(data.root, format=data.format, split=data.split, on_bad=data.on_bad)
    samples = relabelled(found, classes)
    if data.check or data.on_bad == "skip":
        return readable_boxes(samples, on_bad=data.on_bad)
    return samples


def _samples(data: DataOptions, classes: tuple[str, ...]) -> Samples:
    if data.name is not None:
        return RelabelledSamples(named_samples(data.name, data.root)[1], classes)
    found = evaluation_split(data.root)
    if found.root == Path(data.root):
        log.info(
            "%s: all its %d pictures are judged, whether trained on or not", found.root, len(found)
        )
    split = relabel(found, classes)
    if data.check or data.on_bad == "skip":
        (split,) = readable(split, on_bad=data.on_bad)
    return FolderSamples(split)
