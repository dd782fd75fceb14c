"""`mobilevit predict`: what a model sees in images."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from PIL import Image
from torch.utils.data import DataLoader

from mobilevit.checkpoints.create import require_classes
from mobilevit.commands.bulk.command import BulkError, BulkPredictions, predict_in_bulk
from mobilevit.commands.contact_sheet import check_place, write_gallery
from mobilevit.data.loader import as_is
from mobilevit.data.sources import ImageInput, ImageInputs, display_name, expand_inputs, file_stem
from mobilevit.exports.runtime_model import (
    FileDetector,
    FileNetwork,
    FileSegmenter,
    device_of,
    for_inference,
)
from mobilevit.models.registry import Network
from mobilevit.models.segmentation import Segmenter
from mobilevit.models.ssdlite import SSDLite
from mobilevit.tasks.base import InferenceOptions
from mobilevit.tasks.classification.results import Prediction, Predictions, classified
from mobilevit.tasks.detection.loss_and_postprocess import PRESETS, Preset
from mobilevit.tasks.detection.results import (
    DetectionPrediction,
    DetectionPredictions,
    detected,
)
from mobilevit.tasks.segmentation.dataset import voc_palette
from mobilevit.tasks.segmentation.results import MaskPrediction, MaskPredictions, masked
from mobilevit.tasks.visualize import coloured_mask, draw_boxes, draw_classes, draw_mask
from mobilevit.utils.devices import available_cores, init_worker, split_cores, use_threads
from mobilevit.utils.files import write_file
from mobilevit.utils.progress import progress_bar

OwnPredictions: TypeAlias = Predictions | DetectionPredictions | MaskPredictions
AnyPredictions: TypeAlias = OwnPredictions | BulkPredictions


def predict(
    model: str | Path | Network,
    *photos: ImageInput,
    out: str | None = None,
    html: str | None = None,
    format: Literal["table", "jsonl", "csv"] = "table",
    top: int = 5,
    score: float = 0.3,
    postprocessing: Preset = "later",
    classes: str | Sequence[str] | None = None,
    preprocessing: dict[str, Any] | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    threads: int | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    engine: Literal["local", "ray"] = "local",
    part_size: int | None = None,
) -> AnyPredictions:
    """Say what is in images, with the preprocessing that belongs to the model.

    An image that cannot be read is reported, as is a name that stands for nothing; the others
    are done.

    Args:
        model: whatever `load` reads, or a file of `mobilevit export`, which runs in its own runtime
            on the CPU; in Python also a network.
        photos: files, folders (all images below them), patterns such as 'day?/*.jpg', addresses
            (http, https); in Python also bytes, PIL images, arrays and tensors.
        out: folder to write the images to with the answer drawn on them, and answers.jsonl; of
            detection also detections.json in COCO's form, with the training data's category ids;
            of segmentation also the mask in colours, and as a PNG of class numbers with a palette,
            both at the image's own size.
        html: file to write a contact sheet to, a page that is filtered by class, probability and
            name, such as answers.html; thumbnails go into a folder beside it, answers_files.
        format: what is printed.
        top: classes to name for each image (classification).
        score: least probability of a box (detection).
        postprocessing: detection: which of the authors' rules turns outputs into boxes, that of
            2021 or the later one.
        classes: class names in the order of the logits, where the model has none: separated by
            commas, or a text file with one a line.
        preprocessing: fields of the model's preprocessing to override, such as channel_order; an
            exported file has its own inside.
        batch_size: images at a time.
        workers: processes that decode; by default from the numbers of cores and images.
        threads: compute threads on a CPU; by default from the number of cores.
        device: where to compute; auto takes a GPU where there is one.
        engine: ray predicts on the cores of a Ray cluster, RAY_ADDRESS or one started here, and
            writes Parquet files into out; the same call goes on after a stop. It also takes text
            files (.txt) with one image a line; workers are its actors, threads those of each.
        part_size: images in a Parquet file (engine ray); by default 32 to 1024, by the number
            of images.

    Raises:
        DataError: no name stands for an image: no such file, an empty folder.
        CheckpointError: the model cannot be read.
        ExportError: an exported file cannot be opened, or has decided what an option asks for.
        ValueError: the model's classes are not known; an option out of its range; html is no name
            of a page, or its folder holds other files.
    """
    if min(top, batch_size) < 1 or format not in ("table", "jsonl", "csv"):
        raise ValueError("top and batch_size are at least 1, format is table, jsonl or csv")
    if postprocessing not in PRESETS:
        raise ValueError(f"postprocessing must be 2021 or later, not {postprocessing!r}")
    if engine == "ray":
        if html is not None or format != "table":
            raise BulkError("the engine ray writes Parquet files alone: leave html and format out")
        return predict_in_bulk(
            model,
            photos,
            out=out,
            top=top,
            score=score,
            postprocessing=postprocessing,
            classes=classes,
            preprocessing=preprocessing,
            batch_size=batch_size,
            part_size=part_size,
            workers=workers,
            threads=threads,
            device=device,
        )
    if engine != "local" or part_size is not None:
        raise ValueError("engine is local or ray; part_size is an option of the engine ray")
    if html is not None:
        check_place(Path(html))
    boxes = replace(PRESETS[postprocessing], score=score)
    on = device_of(model, device)
    sources = expand_inputs(photos)
    few = len(sources) <= batch_size
    default_threads, default_workers = split_cores(available_cores(), on_gpu=on.type != "cpu")
    if workers is None:
        workers = 0 if few else default_workers
    threads = threads or (available_cores() if few and workers == 0 else default_threads)
    network, name = for_inference(
        model, classes=classes, preprocessing=preprocessing, device=on, threads=threads
    )
    names = require_classes(network.config, name)
    if isinstance(network, FileNetwork):
        network.refuse_options(InferenceOptions(postprocessing=postprocessing, score=score))
    items: list[Any] = []
    with (
        tempfile.TemporaryDirectory() as downloads,
        use_threads(threads),
        torch.inference_mode(),
        progress_bar("predicting", len(sources), show=not few) as advance,
    ):
        images = ImageInputs(sources, network.config.preprocessing, Path(downloads))
        loader = DataLoader(
            images,
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=as_is,
            worker_init_fn=init_worker,
        )
        for batch in loader:
            items += (
                detected(network, batch, names, on, boxes)
                if isinstance(network, SSDLite | FileDetector)
                else masked(network, batch, names, on)
                if isinstance(network, Segmenter | FileSegmenter)
                else classified(network, batch, names, on)
            )
            advance(len(batch))
        items = [
            replace(item, source=display_name(s)) for item, s in zip(items, sources, strict=True)
        ]
        result: OwnPredictions
        if isinstance(network, SSDLite | FileDetector):
            numbers = network.config.category_ids or tuple(range(1, len(names) + 1))
            result = DetectionPredictions(
                items=tuple(items), classes=names, category_ids=numbers, format=format
            )
        elif isinstance(network, Segmenter | FileSegmenter):
            result = MaskPredictions(items=tuple(items), format=format)
        else:
            result = Predictions(items=tuple(items), shown=top, format=format)
        if out is not None:
            _write(Path(out), result, images)
        if html is not None:
            write_gallery(Path(html), result, images, title=f"What {name} sees")
    return result


def _write(folder: Path, predictions: OwnPredictions, images: ImageInputs) -> None:
    """Write `answers.jsonl`, and each image with its answer as `NUMBER-NAME.jpg`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "answers.jsonl", predictions.to_jsonl() + "\n")
    if isinstance(predictions, DetectionPredictions):
        write_file(folder / "detections.json", json.dumps(predictions.to_coco()) + "\n")
    shown = predictions.shown if isinstance(predictions, Predictions) else 0
    digits = len(str(len(images)))
    items: Sequence[Prediction | DetectionPrediction | MaskPrediction] = predictions.items
    for index, item in enumerate(items):
        if item.error is not None:
            continue
        image = images.image(index)
        file = folder / f"{index + 1:0{digits}}-{file_stem(images.sources[index])}.jpg"
        if isinstance(item, Prediction):
            image = draw_classes(image, item.top(min(3, shown)))
        elif isinstance(item, DetectionPrediction):
            image = draw_boxes(image, item.drawn())
        else:
            mask = item.mask
            assert mask is not None
            palette = voc_palette(max(256, len(item.classes)))
            item.index_image().save(file.with_suffix(".png"))
            coloured = Image.fromarray(coloured_mask(mask, palette))
            coloured.save(file.with_name(f"{file.stem}-mask.png"))
            image = draw_mask(image, mask, item.classes, palette)
        image.save(file, quality=90)
