"""`mobilevit predict --engine ray`: more images than one machine can take.

The list of images is cut into parts, one Parquet file each. Ray Data distributes the parts over
actors, which hold the network, predict a part and write its file. A file appears under its name
when it is complete, so a run that was killed continues with the missing parts.

`Dataset.write_parquet` does not allow such a restart: it writes files under their final names, so
that a killed run leaves partial ones, and it divides or joins blocks by their size, so that a file
does not belong to one part of the list.
"""

import hashlib
import importlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from filelock import FileLock, Timeout

from mobilevit.checkpoints.folder import digest
from mobilevit.commands.inference import OpenModel, open_model
from mobilevit.commands.predict import PredictOptions, predict_inputs
from mobilevit.data.errors import DataError
from mobilevit.data.sources import (
    ImageInput,
    ImageInputs,
    MissingImage,
    display_name,
    expand_inputs,
)
from mobilevit.exports.runtime_model import FileNetwork, OptimizedNetwork, for_inference
from mobilevit.models.registry import Network
from mobilevit.tasks import get_task
from mobilevit.utils.devices import available_cores
from mobilevit.utils.files import file_sha256, replace_file, write_file
from mobilevit.utils.progress import progress_bar
from mobilevit.utils.urls import is_url

log = logging.getLogger(__name__)

RECORD, LOCK = "_bulk.json", ".lock"
"""What a folder's parts were made from; readers of Parquet ignore such names."""
METADATA = b"mobilevit"
"""Key of a file's metadata: JSON with `task` and `classes`, in the order of the outputs."""
OBJECT_STORE = 512 * 2**20
"""Bytes of shared memory of a Ray started here, for networks and lists of names."""
PARTS, MIN_PART, MAX_PART = 64, 32, 1024
"""Default number of Parquet files, as far as that gives them 32 to 1024 images."""
LISTED = 5

Source: TypeAlias = tuple[str, str | None]
"""The name of an image; why there is none, if that is known beforehand."""


class BulkError(ValueError):
    """Bulk prediction is not possible with these options, or failed."""


@dataclass(frozen=True, kw_only=True)
class BulkPredictions:
    """The result of a bulk prediction."""

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
        """1 if an image could not be read."""
        return 1 if self.failed else 0

    def __str__(self) -> str:
        kept = f" ({self.kept} of them existed)" if self.kept else ""
        lines = [f"{self.images} images in {len(self.parts)} Parquet files in {self.folder}{kept}"]
        if self.failed:
            lines.append(f"{len(self.failed)} could not be read:")
            lines += [f"  {source}: {error}" for source, error in self.failed[:LISTED]]
            if len(self.failed) > LISTED:
                lines.append("  ... (the rows whose error is not null)")
        return "\n".join(lines)


def predict_in_bulk(
    model: str | Path | Network | OptimizedNetwork,
    images: Sequence[ImageInput],
    options: PredictOptions,
) -> BulkPredictions:
    """Predict on a Ray cluster and write Parquet files, or continue a run that was stopped.

    The cluster is the one that this process has joined, or the one at RAY_ADDRESS; otherwise one is
    started on this machine, and stopped at the end. Images, `out` and an exported file must have
    the same paths on all its machines.

    Args:
        model: as for `predict`, but not optimized.
        images: files, folders, patterns, URLs; and text files (.txt) with one file or URL a line,
            relative to the working folder.
        options: of `predict`. `workers` are actors, by default as many as the cluster's cores
            allow; `threads` are the compute threads, and cores, of each, by default 1; a run that
            continues has the `part_size` that it began with.

    Raises:
        BulkError: no out, or it holds something else; the model is optimized; the cluster is too
            small, or an actor failed.
        DataError: there is no image; the extra is missing.
        CheckpointError, ExportError, ValueError: see `predict`.
        ConnectionError: there is no cluster at RAY_ADDRESS.
    """
    if options.out is None:
        raise BulkError("the engine ray writes Parquet files: give their folder with --out FOLDER")
    if options.device not in ("auto", "cpu"):
        raise BulkError(f"the engine ray computes on CPUs; device cannot be {options.device!r}")
    if isinstance(model, OptimizedNetwork):
        raise BulkError(
            "the engine ray takes a network, a model or an exported file: what optimize returns is "
            "for this process"
        )
    if options.workers == 0:
        raise BulkError("the engine ray needs at least 1 worker")
    for package in ("ray", "pyarrow"):
        _require(package)
    opened = open_model(model, replace(options, device="cpu"), options.outputs)
    sources = _list_sources(images)
    folder = Path(options.out).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "model, classes or preprocessing": _identity(opened),
        "images": hashlib.sha256("\n".join(map(ascii, sources)).encode()).hexdigest(),
    }
    for option in get_task(opened.network.config.task).inference_options:
        record[option] = getattr(options.outputs, option)
    size = options.part_size or min(max(len(sources) // PARTS, MIN_PART), MAX_PART)
    try:
        with FileLock(folder / LOCK, timeout=0):
            size = _claim(folder, record, size)
            parts = {
                folder / f"part-{number:06d}.parquet": sources[first : first + size]
                for number, first in enumerate(range(0, len(sources), size))
            }
            missing = {path: part for path, part in parts.items() if not _is_complete(path, part)}
            for left in folder.glob(".part-*"):  # of a writer that was killed
                left.unlink()
            if missing:
                log.info("predicting %d of %d parts", len(missing), len(parts))
                _run(opened, missing, options)
    except Timeout as error:
        raise BulkError(f"another process is writing to {folder}") from error
    return BulkPredictions(
        folder=Path(options.out),
        parts=tuple(parts),
        images=len(sources),
        kept=len(parts) - len(missing),
        failed=tuple(failure for path in parts for failure in _failures(path)),
    )


def _require(package: str) -> Any:
    """Import a package of the extra `ray`."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise DataError(
            f"the engine ray needs {package}, which is not installed ({error}): "
            "pip install 'mobilevit[ray]'"
        ) from error


def _identity(opened: OpenModel) -> str:
    """A digest of everything that predictions depend on, but the options."""
    config, weights = opened.network.config, ""
    if isinstance(opened.network, FileNetwork):
        path = Path(opened.name).absolute()
        files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
        contents = [(one.relative_to(path.parent).as_posix(), file_sha256(one)) for one in files]
        weights = json.dumps(contents)
    else:
        assert not isinstance(opened.network, OptimizedNetwork)
        weights = digest(opened.network.state_dict())
    parts = json.dumps([weights, config.classes, asdict(config.preprocessing)], default=str)
    return hashlib.sha256(parts.encode()).hexdigest()


def _list_sources(images: Sequence[ImageInput]) -> list[Source]:
    """All images by name, those that do not exist with the reason."""
    sources: list[Source] = []
    for given in images:
        if not isinstance(given, str | Path):
            raise BulkError(
                f"the engine ray takes files and URLs, not images in memory "
                f"({type(given).__name__})"
            )
        path = Path(given)
        if path.suffix.lower() == ".txt" and not is_url(given) and not path.is_dir():
            try:
                lines = path.read_text("utf-8-sig", "surrogateescape").splitlines()
            except OSError as error:
                raise BulkError(f"the list {given} cannot be read: {error.strerror}") from error
            sources += [(line.strip(), None) for line in lines if line.strip()]
            continue
        try:
            sources += [(display_name(one), None) for one in expand_inputs([given])]
        except DataError as error:  # the others are predicted nevertheless
            sources.append((str(given), str(error)))
    if all(error is not None for _, error in sources):
        raise DataError("\n".join(str(error) for _, error in sources) or "no images are given")
    return sources


def _claim(folder: Path, record: dict[str, Any], part_size: int) -> int:
    """Claim a folder that is empty or of the same run, and return the size of its parts."""
    path = folder / RECORD
    if not path.exists():
        others = [one.name for one in folder.iterdir() if not one.name.startswith(".")]
        if others:
            raise BulkError(
                f"{folder} is not empty ({min(others)}) and not a bulk prediction: choose a new "
                "folder"
            )
        write_file(path, json.dumps({**record, "part_size": part_size}, indent=2) + "\n")
    before = json.loads(path.read_text())
    differences = [key for key, value in record.items() if before.get(key) != value]
    if differences:
        raise BulkError(
            f"{folder} is of another bulk prediction, which differs in: {', '.join(differences)}. "
            "Repeat that call to continue it, or choose a new folder"
        )
    return int(before["part_size"])


def _is_complete(path: Path, part: Sequence[Any]) -> bool:
    """Whether a Parquet file exists, can be read, and has a row for each image of its part."""
    pa, parquet = _require("pyarrow"), _require("pyarrow.parquet")
    try:
        return bool(parquet.read_metadata(path).num_rows == len(part))
    except (OSError, pa.ArrowInvalid):  # either, if the file is damaged
        return False


def _failures(path: Path) -> list[tuple[str, str]]:
    """(source, error) of the images in a Parquet file that could not be read."""
    parquet = _require("pyarrow.parquet")
    found = parquet.read_table(path, columns=["source", "error"], partitioning=None).to_pylist()
    return [(one["source"], one["error"]) for one in found if one["error"] is not None]


@contextmanager
def _cluster(threads: int) -> Iterator[Any]:
    """Ray, connected to a cluster; one that is started here is stopped at the end."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no reports to Ray's makers
    ray = _require("ray")
    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get("RAY_ADDRESS") or "local"
    own = {
        "num_cpus": max(available_cores(), threads),
        "object_store_memory": OBJECT_STORE,
        "include_dashboard": False,
    }
    ray.init(
        address=address,
        logging_level=logging.WARNING,
        log_to_driver=False,
        **(own if address == "local" else {}),
    )
    try:
        yield ray
    finally:
        ray.shutdown()


def _run(
    opened: OpenModel, parts: Mapping[Path, Sequence[Source]], options: PredictOptions
) -> None:
    # A file is opened by each actor.
    is_file = isinstance(opened.network, FileNetwork)
    model = str(Path(opened.name).absolute()) if is_file else opened.network
    threads, workers = options.threads or 1, options.workers
    with _cluster(threads) as ray:
        data = _require("ray.data")
        capacity = int(ray.cluster_resources().get("CPU", 0)) // threads
        if (workers or 1) > capacity:
            raise BulkError(
                f"the cluster has room for {capacity} workers of {threads} threads, not "
                f"{workers or 1}"
            )
        data.DataContext.get_current().enable_progress_bars = False  # ours is shown instead
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        rows = [{"path": str(path), "part": json.dumps(part)} for path, part in parts.items()]
        # One row a block, so that the next free actor takes the next part.
        counts = data.from_items(rows, override_num_blocks=len(rows)).map(
            Predictor,
            fn_constructor_args=(ray.put(model), opened.classes, options, os.getcwd()),
            num_cpus=threads,
            compute=data.ActorPoolStrategy(size=min(workers or capacity, len(rows))),
        )
        try:
            with progress_bar("predicting", sum(map(len, parts.values()))) as advance:
                for row in counts.iter_rows():
                    advance(int(row["images"]))
        except ray.exceptions.RayError as error:
            # Ray gives tracebacks as text, the worker's first.
            text = str(getattr(error, "traceback_str", error))
            reason = text.partition("\n\nThe above exception")[0].strip().splitlines()[-1]
            raise BulkError(
                f"a worker failed: {reason}. The parts that are written stay; the same call "
                "continues with the others"
            ) from error


class Predictor:
    """An actor: loads the network once, then predicts and writes parts."""

    def __init__(
        self, model: Any, classes: tuple[str, ...], options: PredictOptions, base: str
    ) -> None:
        """`model`: Ray's reference to the network, or to the name of an exported file.

        `base`: the folder that names of images are relative to.
        """
        device, threads = torch.device("cpu"), options.threads or 1
        network = _require("ray").get(model)
        if isinstance(network, str):
            network, _ = for_inference(
                network, classes=None, preprocessing=None, device=device, threads=threads
            )
        self.opened = OpenModel(
            network, "", classes, device, threads, workers=0, keep_memory=options.keep_memory
        )
        self.options, self.base = replace(options, workers=0), base

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Predict a part and write its file, with the columns that `docs/bulk.md` lists."""
        pa, parquet = _require("pyarrow"), _require("pyarrow.parquet")
        task = get_task(self.opened.network.config.task)
        about = json.dumps({"task": task.name, "classes": list(self.opened.classes)}).encode()
        columns = [("source", pa.string()), ("error", pa.string()), *task.parquet_columns(pa)]
        part = json.loads(row["part"])
        inputs = [
            MissingImage(name, error)
            if error is not None
            else name
            if is_url(name)
            else Path(self.base, name)
            for name, error in part
        ]
        with tempfile.TemporaryDirectory() as downloads:
            preprocessing = self.opened.network.config.preprocessing
            images = ImageInputs(inputs, preprocessing, Path(downloads))
            items = predict_inputs(self.opened, images, self.options, few=True)
        rows = [
            {
                "source": _utf8(name),
                **(item.parquet_row() if item.error is None else {"error": _utf8(item.error)}),
            }
            for (name, _), item in zip(part, items, strict=True)
        ]
        table = pa.Table.from_pylist(rows, schema=pa.schema(columns, metadata={METADATA: about}))
        with replace_file(Path(row["path"])) as fresh:
            parquet.write_table(table, fresh, compression="zstd")
        return {"images": len(items)}


def _utf8(name: str) -> str:
    r"""A valid string for Parquet: bytes of a file name that are not UTF-8 become \xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
