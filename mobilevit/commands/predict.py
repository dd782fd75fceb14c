"""The command `mobilevit predict`: predictions for images."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch.utils.data import DataLoader

from mobilevit.commands.contact_sheet import check_contact_sheet, write_contact_sheet
from mobilevit.commands.inference import ModelOptions, OpenModel, open_model
from mobilevit.data.loader import as_is, delivered
from mobilevit.data.sources import ImageInput, ImageInputs, display_name, expand_inputs, file_stem
from mobilevit.exports.runtime_model import OptimizedNetwork
from mobilevit.models.registry import Network
from mobilevit.tasks import get_task
from mobilevit.tasks.base import InferenceOptions
from mobilevit.tasks.predict import predict_batch
from mobilevit.tasks.results import Prediction, Predictions
from mobilevit.utils.devices import init_worker
from mobilevit.utils.files import write_file
from mobilevit.utils.options import Count, Interval
from mobilevit.utils.progress import progress_bar


@dataclass(frozen=True, kw_only=True)
class PredictOptions(ModelOptions):
    """Options of `predict`."""

    out: str | None = None
    """Folder to write images with their predictions drawn to, and predictions.jsonl; of detection
    also detections.json in COCO's format, with the training data's category ids; of segmentation
    also the mask in colours, and as a PNG of class numbers with a palette, both at the image's own
    size."""
    html: str | None = None
    """File to write a contact sheet to, a page that is filtered by class, probability and name,
    such as sheet.html; thumbnails go into a folder next to it, sheet_files."""
    format: Literal["table", "jsonl", "csv"] = "table"
    """What is printed."""
    top: Count = 5
    """Classification: classes listed for each image."""
    score: Annotated[float, Interval(0, 1)] = 0.3
    """Detection: least probability of a box."""
    batch_size: Count = 32
    """Images at a time."""
    workers: Annotated[int, Interval(0)] | None = None
    """Processes that decode; by default from the numbers of cores and images."""
    engine: Literal["local", "ray"] = "local"
    """ray predicts on the cores of a Ray cluster, RAY_ADDRESS or one started here, and writes
    Parquet files into out; the same call continues after a stop. It also takes text files (.txt)
    with one image a line; workers are its actors, threads those of each."""
    part_size: Count | None = None
    """Engine ray: images in a Parquet file; by default 32 to 1024, by the number of images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine == "ray" and (self.html is not None or self.format != "table"):
            raise ValueError("the engine ray writes only Parquet files: leave html and format out")
        if self.engine == "local" and self.part_size is not None:
            raise ValueError("part_size is an option of the engine ray")

    @property
    def outputs(self) -> InferenceOptions:
        return InferenceOptions(top=self.top, score=self.score, postprocessing=self.postprocessing)


def predict(
    model: str | Path | Network | OptimizedNetwork,
    *images: ImageInput,
    options: PredictOptions | None = None,
    **fields: Any,
) -> Any:
    """Predict images, with the preprocessing that belongs to the model.

    An image that cannot be read is reported, as is a name without images; the others are
    predicted.

    Args:
        model: whatever `load` reads, or a file of `mobilevit export`, which runs in its own runtime
            on the CPU; in Python also a network, optimized or not.
        images: files, folders (all images below them), patterns such as 'day?/*.jpg', addresses
            (http, https); in Python also bytes, PIL images, arrays and tensors.
        options: all options; or in Python
        fields: of `PredictOptions` that differ from its defaults, such as `top` or `out`.

    Returns:
        The task's `Predictions`; with the engine ray `BulkPredictions`.

    Raises:
        DataError: there is no image: no such file, an empty folder.
        CheckpointError: the model cannot be read.
        ExportError: an exported file cannot be opened, or an option contradicts what is inside it.
        ValueError: the model's classes are not known; html is no name of a page, or its folder
            holds other files.

    >>> import numpy as np
    >>> from mobilevit import create_model, predict
    >>> model = create_model("mobilevit_xxs", classes=("cat", "dog"))
    >>> predictions = predict(model, np.zeros((64, 64, 3), np.uint8))
    >>> sorted(name for name, probability in predictions.top(2))
    ['cat', 'dog']
    """
    options = PredictOptions(**fields) if options is None else replace(options, **fields)
    if options.engine == "ray":
        from mobilevit.commands.bulk import predict_in_bulk

        return predict_in_bulk(model, images, options)
    if options.html is not None:
        check_contact_sheet(Path(options.html))
    sources = expand_inputs(images)
    few = len(sources) <= options.batch_size
    opened = open_model(model, options, options.outputs, all_cores=few and not options.workers)
    config = opened.network.config
    with tempfile.TemporaryDirectory() as downloads:
        dataset = ImageInputs(sources, config.preprocessing, Path(downloads))
        items = predict_inputs(opened, dataset, options, few=few)
        result = get_task(config.task).predictions_type(
            items=tuple(items),
            classes=config.classes or (),
            category_ids=config.category_ids,
            format=options.format,
        )
        if options.out is not None:
            _write(Path(options.out), result, dataset)
        if options.html is not None:
            title = f"What {opened.name} sees"
            write_contact_sheet(Path(options.html), result, dataset, title=title)
    return result


def predict_inputs(
    opened: OpenModel, images: ImageInputs, options: PredictOptions, *, few: bool
) -> list[Prediction]:
    """Predict images; `few`: without loader workers, unless the options have them, and a bar."""
    workers = options.workers
    if workers is None:
        workers = 0 if few else opened.workers
    loader = DataLoader(
        images,
        batch_size=options.batch_size,
        num_workers=workers,
        collate_fn=as_is,
        worker_init_fn=init_worker,
        generator=torch.Generator(),  # the global one stays as it is
    )
    sources: Sequence[str] = [display_name(source) for source in images.sources]
    items: list[Prediction] = []
    with (
        opened.resources(),
        torch.inference_mode(),
        progress_bar("predicting", len(sources), show=not few) as advance,
    ):
        for batch in delivered(loader, option="--workers"):
            items += predict_batch(
                opened.network,
                batch,
                sources[len(items) : len(items) + len(batch)],
                classes=opened.classes,
                options=options.outputs,
                device=opened.device,
            )
            advance(len(batch))
    return items


def _write(folder: Path, predictions: Predictions[Any], images: ImageInputs) -> None:
    """Write the predictions' files, and each image as `NUMBER-NAME.jpg` with its prediction."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in predictions.files().items():
        write_file(folder / name, text + "\n")
    digits = len(str(len(images)))
    for index, item in enumerate(predictions.items):
        if item.error is not None:
            continue
        name = f"{index + 1:0{digits}}-{file_stem(images.sources[index])}"
        item.draw(images.image(index)).save(folder / f"{name}.jpg", quality=90)
        for ending, image in item.images().items():
            image.save(folder / f"{name}{ending}")
