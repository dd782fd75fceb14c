"""`mobilevit predict`: what a model sees in pictures."""

from __future__ import annotations

import csv
import glob
import http.client
import io
import itertools
import json
import re
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mobilevit.checkpoints.create import opened, stated_classes
from mobilevit.checkpoints.files import replacing
from mobilevit.commands.tables import render
from mobilevit.data.cores import compute_device, computing_on, cores, set_up_worker, share_cores
from mobilevit.data.folder import DataError, images_below
from mobilevit.data.images import IMAGE_EXTENSIONS, ImageError, open_image
from mobilevit.data.loader import as_is
from mobilevit.data.preprocessing import Preprocessing
from mobilevit.models.classifier import Classifier
from mobilevit.models.fuse import fuse
from mobilevit.tasks.drawing import draw_classes

Photo = str | Path | bytes | Image.Image | np.ndarray | Tensor
URL_TIMEOUT = 30
"""Seconds that a server may take to answer, or to go on."""
MAX_DOWNLOAD = 200 * 2**20
"""Bytes that a picture from the network may have."""


class Answer(NamedTuple):
    """One class and its probability, in [0, 1]."""

    name: str
    probability: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """What a model sees in one picture."""

    source: str
    """The file, the address, or what the picture is called in messages."""
    classes: tuple[str, ...] = ()
    """Names of all classes, in the order of the model's outputs."""
    probabilities: np.ndarray | None = None
    """For each class its probability, float32 `[K]`; None where the picture could not be read."""
    error: str | None = None
    """Why the picture could not be read."""

    @property
    def answers(self) -> list[Answer]:
        """All classes, likeliest first; none where the picture could not be read."""
        return [] if self.error is not None else self.top(len(self.classes))

    def top(self, count: int) -> list[Answer]:
        """The likeliest classes.

        Raises:
            ImageError: the picture could not be read.
        """
        if self.error is not None:
            raise ImageError(self.source, self.error)
        assert self.probabilities is not None
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [Answer(self.classes[index], float(self.probabilities[index])) for index in order]


@dataclass(frozen=True, kw_only=True)
class Predictions(Sequence[Prediction]):
    """What a model sees in pictures, in the order they were named."""

    items: tuple[Prediction, ...]
    shown: int = 5
    """Classes that the text forms name for each picture."""
    format: Literal["table", "jsonl", "csv"] = "table"
    """What `str` gives."""

    def __getitem__(self, index: Any) -> Any:
        """One picture's prediction, or several."""
        return self.items[index]

    def __len__(self) -> int:
        """The number of pictures, those that could not be read included."""
        return len(self.items)

    @property
    def failed(self) -> list[Prediction]:
        """Those that could not be read."""
        return [item for item in self.items if item.error is not None]

    @property
    def exit_code(self) -> int:
        """1 where a picture could not be read."""
        return 1 if self.failed else 0

    def top(self, count: int) -> list[Answer]:
        """The likeliest classes of the only picture.

        Raises:
            ImageError: it could not be read.
            ValueError: there are several pictures.
        """
        if len(self.items) != 1:
            raise ValueError(f"{len(self.items)} pictures: ask one of them, predictions[0].top(5)")
        return self.items[0].top(count)

    def to_jsonl(self) -> str:
        """One JSON object a line: file, and answers or error."""
        lines = []
        for item in self.items:
            row: dict[str, Any] = {"file": item.source}
            if item.error is not None:
                row["error"] = item.error
            else:
                row["answers"] = [
                    {"class": name, "probability": round(probability, 6)}
                    for name, probability in item.top(self.shown)
                ]
            lines.append(json.dumps(row, ensure_ascii=False))
        return "\n".join(lines)

    def to_csv(self) -> str:
        """A table with a head: file, error, class_1, probability_1, class_2, ..."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        width = max((min(len(item.classes), self.shown) for item in self.items), default=0)
        ranks = range(1, width + 1)
        head = [f"{column}_{rank}" for rank in ranks for column in ("class", "probability")]
        writer.writerow(["file", "error", *head])
        for item in self.items:
            answers = ((name, f"{share:.6f}") for name, share in item.answers[: self.shown])
            writer.writerow([item.source, item.error or "", *itertools.chain(*answers)])
        return text.getvalue().rstrip("\n")

    def __str__(self) -> str:
        """The chosen format."""
        if self.format == "jsonl":
            return self.to_jsonl()
        if self.format == "csv":
            return self.to_csv()
        table = Table(box=box.SIMPLE_HEAD)
        for column in ("picture", "answer", "probability", "then"):
            table.add_column(
                column, justify="right" if column == "probability" else "left", overflow="fold"
            )
        for item in self.items:
            if item.error is not None:
                table.add_row(escape(item.source), "not read", "", escape(item.error))
                continue
            first, *others = item.top(self.shown)
            rest = ", ".join(f"{name} {probability:.1%}" for name, probability in others)
            table.add_row(
                escape(item.source), escape(first.name), f"{first.probability:.1%}", escape(rest)
            )
        return render(table)


def predict(
    model: str | Path | Classifier,
    *photos: Photo,
    out: str | None = None,
    format: Literal["table", "jsonl", "csv"] = "table",
    top: int = 5,
    classes: str | Sequence[str] | None = None,
    preprocessing: dict[str, Any] | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    threads: int | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> Predictions:
    """Classify pictures, with the preprocessing that belongs to the model.

    A picture that can not be read is reported, as is a name that stands for nothing; the others
    are done.

    Args:
        model: a model folder, an authors' checkpoint or a timm one; in Python also a network.
        photos: files, folders (all pictures below them), patterns such as 'day?/*.jpg', addresses
            (http, https); in Python also bytes, PIL images, arrays and tensors.
        out: folder to write the pictures to with the answer drawn on them, and answers.jsonl.
        format: what is printed.
        top: classes to name for each picture.
        classes: class names in the order of the logits, where the model has none: separated by
            commas, or a text file with one a line.
        preprocessing: fields of the model's preprocessing to override, such as channel_order.
        batch_size: pictures at a time.
        workers: processes that decode; by default from the numbers of cores and pictures.
        threads: compute threads on a CPU; by default from the number of cores.
        device: where to compute; auto takes a GPU where there is one.

    Raises:
        DataError: no name stands for a picture: no such file, an empty folder.
        CheckpointError: the model can not be read.
        ValueError: the model's classes are not known; an option out of its range.
    """
    if min(top, batch_size) < 1 or format not in ("table", "jsonl", "csv"):
        raise ValueError("top and batch_size are at least 1, format is table, jsonl or csv")
    network, name = opened(model, classes=classes, preprocessing=preprocessing)
    names = stated_classes(network, name)
    on = compute_device(device)
    sources = _sources(photos)
    few = len(sources) <= batch_size
    default_threads, default_workers = share_cores(cores(), on_gpu=on.type != "cpu")
    if workers is None:
        workers = 0 if few else default_workers
    threads = threads or (cores() if few and workers == 0 else default_threads)
    fused = fuse(network).to(on)
    items: list[Prediction] = []
    console = Console(stderr=True)
    with (
        tempfile.TemporaryDirectory() as downloads,
        computing_on(threads),
        torch.inference_mode(),
        Progress(transient=True, console=console, disable=few or not console.is_terminal) as bar,
    ):
        pictures = _Pictures(sources, network.config.preprocessing, Path(downloads))
        loader = DataLoader(
            pictures,
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=as_is,
            worker_init_fn=set_up_worker,
        )
        task = bar.add_task("predicting", total=len(sources))
        for batch in loader:
            items += _answers(fused, batch, names, on)
            bar.advance(task, len(batch))
        items = [replace(item, source=_name(s)) for item, s in zip(items, sources, strict=True)]
        result = Predictions(items=tuple(items), shown=top, format=format)
        if out is not None:
            _write(Path(out), result, pictures)
    return result


class _Nothing(NamedTuple):
    """A name that stands for no picture."""

    name: str
    reason: str


class _Pictures(Dataset[Tensor | str]):
    """Pictures as tensors `[3, crop, crop]`, or the reason why one can not be read."""

    def __init__(
        self, sources: Sequence[Photo | _Nothing], preprocessing: Preprocessing, downloads: Path
    ) -> None:
        self.sources, self.preprocessing, self.downloads = sources, preprocessing, downloads

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return self.preprocessing(self.picture(index))
        except ImageError as error:
            return error.reason

    def picture(self, index: int) -> Image.Image:
        """The upright picture; one from the network is fetched once.

        Raises:
            ImageError: it can not be read, or the server does not give it.
        """
        source = self.sources[index]
        if isinstance(source, _Nothing):
            raise ImageError(source.name, source.reason)
        if _is_url(source):
            address, source = str(source), self.downloads / str(index)
            if not source.exists():
                _download(address, source)
        return open_image(source)


def _answers(
    model: torch.nn.Module, batch: list[Tensor | str], names: Sequence[str], device: torch.device
) -> list[Prediction]:
    """Predictions for a batch of tensors, with the failed ones where they stood."""
    tensors = [item for item in batch if isinstance(item, Tensor)]
    rows: Iterator[np.ndarray] = iter(())
    if tensors:
        rows = iter(model(torch.stack(tensors).to(device)).float().softmax(-1).cpu().numpy())
    return [
        Prediction(source="", error=item)
        if isinstance(item, str)
        else Prediction(source="", classes=tuple(names), probabilities=next(rows))
        for item in batch
    ]


def _is_url(photo: Photo | _Nothing) -> bool:
    return isinstance(photo, str) and photo.startswith(("http://", "https://"))


def _sources(photos: Sequence[Photo]) -> list[Photo | _Nothing]:
    """The pictures that names stand for, and the names that stand for none.

    Raises:
        DataError: all stand for none.
    """
    sources: list[Photo | _Nothing] = []
    for photo in photos:
        try:
            sources += _expand(photo)
        except DataError as error:
            sources.append(_Nothing(str(photo), str(error)))
    nothing = [source for source in sources if isinstance(source, _Nothing)]
    if len(nothing) == len(sources):
        raise DataError("\n".join(source.reason for source in nothing) or "no pictures are named")
    return sources


def _expand(photo: Photo) -> Sequence[Photo]:
    """The pictures that a name stands for."""
    if not isinstance(photo, str | Path) or _is_url(photo):
        return [photo]
    path = Path(photo)
    if path.is_dir():
        found = images_below(path)
        if not found:
            raise DataError(f"{path} has no pictures in it")
        return found
    if path.exists():
        return [path]
    matches = [Path(name) for name in sorted(glob.glob(str(photo), recursive=True))]
    pictures = [
        match
        for match in matches
        if match.suffix.lower() in IMAGE_EXTENSIONS and not match.is_dir()
    ]
    if not pictures:
        raise DataError(f"{photo}: no such file, folder or pattern that a picture matches")
    return pictures


def _download(address: str, file: Path) -> None:
    """Fetch a picture from the network.

    Raises:
        ImageError: the server does not give it, or too much.
    """
    try:
        with urllib.request.urlopen(address, timeout=URL_TIMEOUT) as answer:
            content: bytes = answer.read(MAX_DOWNLOAD + 1)
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise ImageError(address, f"can not be downloaded: {error}") from error
    if len(content) > MAX_DOWNLOAD:
        raise ImageError(address, f"larger than {MAX_DOWNLOAD // 2**20} MiB")
    file.write_bytes(content)


def _name(source: Photo | _Nothing) -> str:
    if isinstance(source, _Nothing):
        return source.name
    return str(source) if isinstance(source, str | Path) else f"<{type(source).__name__}>"


def _stem(source: Photo | _Nothing) -> str:
    """What to call the drawn picture: a short name that every file system takes."""
    if not isinstance(source, str | Path):
        return "picture"
    path = (
        urllib.parse.unquote(urllib.parse.urlsplit(str(source)).path) if _is_url(source) else source
    )
    return re.sub(r"[^\w.-]+", "_", Path(path).stem)[:60] or "picture"


def _write(folder: Path, predictions: Predictions, pictures: _Pictures) -> None:
    """Write `answers.jsonl`, and each picture with its answer as `NUMBER-NAME.jpg`."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "answers.jsonl") as fresh:
        fresh.write_text(predictions.to_jsonl() + "\n", encoding="utf-8")
    digits = len(str(len(pictures)))
    for index, item in enumerate(predictions):
        if item.error is None:
            drawn = draw_classes(pictures.picture(index), item.top(min(3, predictions.shown)))
            stem = _stem(pictures.sources[index])
            drawn.save(folder / f"{index + 1:0{digits}}-{stem}.jpg", quality=90)
