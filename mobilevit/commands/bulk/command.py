"""`mobilevit predict --engine ray`: more images than one machine can take.

The list of images is cut into parts, each a Parquet file in the end. Ray Data hands parts to
actors, each with the network in its memory; the actor that has predicted a part writes it. A part
that has its name is whole, so a run that was killed goes on with those that are missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout

from mobilevit.checkpoints.create import open_model, require_classes
from mobilevit.checkpoints.folder import digest
from mobilevit.commands.bulk.rows import failures, has_rows, need_ray
from mobilevit.commands.bulk.worker import Predictor, Work, part_path
from mobilevit.data.errors import DataError
from mobilevit.data.sources import ImageInput, display_name, expand_inputs
from mobilevit.exports.runtime_model import FileNetwork, for_inference, is_file
from mobilevit.models.config import ModelConfig
from mobilevit.models.registry import Network
from mobilevit.tasks import get_task
from mobilevit.utils.devices import available_cores
from mobilevit.utils.files import write_file
from mobilevit.utils.progress import progress_bar
from mobilevit.utils.urls import is_url

if TYPE_CHECKING:
    from mobilevit.commands.predict import PredictOptions

log = logging.getLogger(__name__)

RUN, LOCK = "_bulk.json", ".lock"
"""The record of what a folder's parts are of; readers of Parquet pass over such names."""
STORE = 512 * 2**20
"""Bytes of memory that a Ray started here shares: networks and lists of names pass through it."""
PARTS, SMALLEST, LARGEST = 64, 32, 1024
"""Where nobody says, so many Parquet files, if that makes them of 32 to 1024 images."""
SHOWN = 5
"""Up to so many images that could not be read are named."""


class BulkError(ValueError):
    """Bulk prediction that cannot be done as asked; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class BulkPredictions:
    """What bulk prediction has written."""

    folder: Path
    parts: tuple[Path, ...]
    """The Parquet files, in the order of the images."""
    images: int
    """Rows of all parts, one for each image."""
    kept: int
    """Parts that an earlier run had written."""
    failed: tuple[tuple[str, str], ...]
    """(source, error) of the images that could not be read."""

    @property
    def exit_code(self) -> int:
        """1 where an image could not be read."""
        return 1 if self.failed else 0

    def __str__(self) -> str:
        """How much there is and where, and the first images that could not be read."""
        there = f" ({self.kept} of them were there already)" if self.kept else ""
        lines = [f"{self.images} images in {len(self.parts)} Parquet files in {self.folder}{there}"]
        if self.failed:
            lines.append(f"{len(self.failed)} could not be read:")
            lines += [f"  {source}: {error}" for source, error in self.failed[:SHOWN]]
            if len(self.failed) > SHOWN:
                lines.append("  ... (the rows whose error is not null)")
        return "\n".join(lines)


def predict_in_bulk(
    model: str | Path | Network, images: Sequence[ImageInput], options: PredictOptions
) -> BulkPredictions:
    """Predict on a Ray cluster and write Parquet files, or continue a run that was stopped.

    The cluster is the one that this process has joined already, or the one at RAY_ADDRESS; else one
    is started on this machine, and stopped at the end. Images, `out` and an exported file must
    have the same paths on all its machines.

    Args:
        model: as of `predict`.
        images: files, folders, patterns, addresses; and text files (.txt) with one file or address
            a line, relative to the working folder.
        options: of `predict`. `workers` are actors, by default as many as the cluster's cores
            allow; `threads` are the compute threads, and cores, of each, by default 1; a run that
            continues has the `part_size` that it began with.

    Raises:
        BulkError: no out, or it holds something else; the cluster is too small, or an actor failed.
        DataError: there is no image; the extra is missing.
        CheckpointError, ExportError, ValueError: see `predict`.
        ConnectionError: there is no cluster at RAY_ADDRESS.
    """
    if options.out is None:
        raise BulkError("the engine ray writes Parquet files: say where with --out FOLDER")
    if options.device not in ("auto", "cpu"):
        raise BulkError(f"the engine ray computes on CPUs; device cannot be {options.device!r}")
    if options.workers == 0:
        raise BulkError("the engine ray needs at least 1 worker")
    for package in ("ray", "pyarrow"):
        need_ray(package)
    outputs = options.outputs
    held, config, identity = _identified(model, options)
    names = _listed(images)
    part_size = options.part_size or min(max(len(names) // PARTS, SMALLEST), LARGEST)
    task = get_task(config.task)
    asked = {
        "model": identity,
        "images": len(names),
        "list": hashlib.sha256("\n".join(map(ascii, names)).encode()).hexdigest(),
        **{name: getattr(outputs, name) for name in task.inference_options},
    }
    folder = Path(options.out).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    work = Work(
        folder=folder,
        base=os.getcwd(),
        task=config.task,
        classes=require_classes(
            config, str(model) if isinstance(model, str | Path) else model.name
        ),
        outputs=outputs,
        batch_size=options.batch_size,
        threads=options.threads or 1,
    )
    try:
        with FileLock(folder / LOCK, timeout=0):
            part_size = _begun(folder, asked, part_size)
            cut = [names[first : first + part_size] for first in range(0, len(names), part_size)]
            missing = [
                n for n, part in enumerate(cut) if not has_rows(part_path(folder, n), len(part))
            ]
            for left in folder.glob(".part-*"):  # of a writer that was killed
                left.unlink()
            if missing:
                log.info("%d of %d parts are to be predicted", len(missing), len(cut))
                _run(work, held, {n: cut[n] for n in missing}, options.workers)
    except Timeout as error:
        raise BulkError(f"another process is writing to {folder}") from error
    parts = tuple(part_path(folder, number) for number in range(len(cut)))
    return BulkPredictions(
        folder=Path(options.out),
        parts=parts,
        images=len(names),
        kept=len(cut) - len(missing),
        failed=tuple(failure for part in parts for failure in failures(part)),
    )


def _identified(
    model: str | Path | Network, options: PredictOptions
) -> tuple[str | Network, ModelConfig, str]:
    """What actors are given, the model's configuration, and a digest that predictions depend on."""
    given: dict[str, Any] = {"classes": options.classes, "preprocessing": options.preprocessing}
    if isinstance(model, str | Path) and is_file(model):
        path = Path(model).absolute()
        network, _ = for_inference(
            path,
            **given,
            device=torch.device("cpu"),
            threads=1,
        )
        if isinstance(network, FileNetwork):
            network.refuse_options(options.outputs)
        total = hashlib.sha256()
        files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
        for one in files:
            with one.open("rb") as opened_file:
                content = hashlib.file_digest(opened_file, "sha256").hexdigest()
            total.update(f"{one.relative_to(path.parent)} {content}\n".encode())
        held: str | Network = str(path)
        config, weights = network.config, total.hexdigest()
    else:
        held, _ = open_model(model, **given)
        held.eval()
        config, weights = held.config, digest(held.state_dict())
    rest = json.dumps([weights, config.classes, asdict(config.preprocessing)], default=str)
    return held, config, hashlib.sha256(rest.encode()).hexdigest()


def _listed(photos: Sequence[ImageInput]) -> list[tuple[str, str | None]]:
    """The names of images, each with the reason where it stands for none.

    Raises:
        BulkError: an image in memory; a list that is empty or cannot be read.
        DataError: no name stands for an image.
    """
    names: list[tuple[str, str | None]] = []
    for photo in photos:
        if not isinstance(photo, str | Path):
            raise BulkError(
                f"the engine ray takes files and addresses, not images in memory "
                f"({type(photo).__name__})"
            )
        path = Path(photo)
        if path.suffix.lower() == ".txt" and not is_url(photo) and not path.is_dir():
            try:
                lines = path.read_text("utf-8-sig", "surrogateescape").splitlines()
            except OSError as error:
                raise BulkError(f"the list {photo} cannot be read: {error.strerror}") from error
            found = [(line.strip(), None) for line in lines if line.strip()]
            if not found:
                raise BulkError(f"the list {photo} is empty")
            names += found
            continue
        try:
            sources = expand_inputs([photo])
        except DataError as error:  # of one name alone: the others are done
            names.append((str(photo), str(error)))
        else:
            names += [(display_name(source), None) for source in sources]
    if all(reason is not None for _, reason in names):
        raise DataError("\n".join(str(reason) for _, reason in names) or "no images are named")
    return names


def _begun(folder: Path, asked: dict[str, Any], part_size: int) -> int:
    """See that a folder is new or of this very run, and write down what it is of.

    Returns:
        The size of its parts.

    Raises:
        BulkError: it is of another run, or holds something else.
    """
    record = folder / RUN
    if not record.exists():
        others = [one.name for one in folder.iterdir() if not one.name.startswith(".")]
        if others:
            raise BulkError(
                f"{folder} is not empty ({min(others)}) and no bulk prediction: choose a new folder"
            )
        write_file(record, json.dumps({**asked, "part_size": part_size}, indent=2) + "\n")
        return part_size
    try:
        had = json.loads(record.read_text())
        size = int(had.pop("part_size"))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BulkError(f"{record} is damaged; choose a new folder") from error
    if had != asked:
        differ = [
            "the list of images"
            if key == "list"
            else f"{key} ({had.get(key)}, now {value})"
            if key != "model"
            else "the model, its classes or its preprocessing"
            for key, value in {**dict.fromkeys(had), **asked}.items()
            if had.get(key) != value
        ]
        raise BulkError(
            f"{folder} is of another bulk prediction: {', '.join(differ)} differ. Repeat that call "
            "to go on with it, or choose a new folder"
        )
    return size


def _run(
    work: Work,
    held: str | Network,
    parts: Mapping[int, Sequence[tuple[str, str | None]]],
    workers: int | None,
) -> None:
    """Predict and write parts in Ray Data.

    Raises:
        BulkError: the cluster is too small for the workers; an actor failed.
        ConnectionError: there is no cluster at RAY_ADDRESS.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
    ray = need_ray("ray")
    data = need_ray("ray.data")
    ours = not ray.is_initialized()
    if ours:
        address = os.environ.get("RAY_ADDRESS") or "local"
        own = {"num_cpus": max(available_cores(), work.threads), "object_store_memory": STORE}
        ray.init(
            address=address,
            include_dashboard=False if address == "local" else None,
            logging_level=logging.WARNING,
            log_to_driver=False,
            **(own if address == "local" else {}),
        )
    try:
        room = int(ray.cluster_resources().get("CPU", 0)) // work.threads
        if (workers or 1) > room:
            raise BulkError(
                f"the cluster has room for {room} workers of {work.threads} threads, not "
                f"{workers or 1}"
            )
        data.DataContext.get_current().enable_progress_bars = False  # there is one of our own
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        rows = [{"number": n, "names": json.dumps(part)} for n, part in parts.items()]
        # A row a block: the next free actor takes the next part.
        said = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Predictor,
            fn_constructor_args=(work, ray.put(held)),
            batch_size=1,
            num_cpus=work.threads,
            compute=data.ActorPoolStrategy(size=min(workers or room, len(rows))),
        )
        with progress_bar("predicting", sum(map(len, parts.values()))) as advance:
            for one in said.iter_rows():
                advance(int(one["images"]))
    except ray.exceptions.RayError as error:
        raise BulkError(
            f"a worker failed: {_reason(error)}. The parts that are written stay; the same call "
            "goes on with the others"
        ) from error
    finally:
        if ours:
            ray.shutdown()


def _reason(error: Exception) -> str:
    """What went wrong in a worker.

    Ray gives an error of a worker as the text of its tracebacks; the first of them is the worker's.
    """
    text = str(getattr(error, "traceback_str", error))
    return text.partition("\n\nThe above exception")[0].strip().splitlines()[-1]
