"""Web pages: folders of static files that run a model in a browser, on the device itself."""

import importlib.metadata
import json
from dataclasses import asdict, replace
from importlib.resources import as_file, files
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import torch
from PIL import Image

from mobilevit.data.preprocessing import frame_image, image_to_tensor
from mobilevit.exports.backends.base import Backend, FileSummary, Runner
from mobilevit.exports.backends.onnx import BACKEND as ONNX
from mobilevit.exports.backends.web.onnxruntime_web import BUILDS, NAME, VERSION, provide, unpack
from mobilevit.exports.spec import ExportError, ExportSpec, FileMetadata
from mobilevit.exports.verify import TOLERANCES
from mobilevit.exports.wrap import PreparedModel
from mobilevit.models.config import MAX_ASPECT_RATIO, SIZE_MULTIPLE
from mobilevit.models.fuse import fuse
from mobilevit.models.registry import Network
from mobilevit.tasks import get_task

PAGE, MODEL, RUNTIME, TEST = "page.json", "model.onnx", "runtime", "test"
"""Files and folders of a page; only pages have `PAGE`."""

TEST_IMAGE_SIDE = 640
"""Pixels of the test image's long side; it is stored as PNG."""


def is_page(folder: Path) -> bool:
    """Whether a folder is a page that `mobilevit export` wrote."""
    return (folder / PAGE).is_file() and (folder / "index.html").is_file()


def check_output(folder: Path, spec: ExportSpec) -> None:
    """Check that a page can be written to a folder; an existing page is replaced."""
    if spec.raw or spec.dynamic == "batch":
        raise ExportError(
            "a page runs its model on one image at a time and shows predictions: raw and dynamic "
            "batch are not supported"
        )
    empty = folder.is_dir() and next(folder.iterdir(), None) is None
    if folder.exists() and not is_page(folder) and not empty:
        raise ExportError(
            f"{folder} exists and was not written by this library: give another folder, it would "
            "be replaced"
        )


def write(prepared: PreparedModel, path: Path) -> FileSummary:
    """Write a prepared network as a page; `add_self_test` adds a test image to it."""
    with as_file(files("mobilevit.exports.backends.web") / "page") as sources:
        copytree(sources, path, dirs_exist_ok=True)
    unpack(provide(), path / RUNTIME)
    summary = ONNX.write_prepared(prepared, path / MODEL)
    _write_json(path / PAGE, _description(prepared.metadata, path), indent=1)
    return replace(summary, path=path)


def open_page(path: Path, threads: int) -> Runner:
    """Open a page's model in ONNX Runtime, on the CPU."""
    if not is_page(path):
        raise ExportError(f"{path} was not written by `mobilevit export`: it has no {PAGE}")
    return ONNX.open(path / MODEL, threads)


def add_self_test(folder: Path, model: Network, image: Image.Image) -> None:
    """Add an image, reduced to 640 pixels, and Python's prediction, which the page checks."""
    run = open_page(folder, 1)
    image = image.copy()
    image.thumbnail((TEST_IMAGE_SIDE, TEST_IMAGE_SIDE))
    frame = frame_image(image, run.metadata.config.preprocessing)
    (folder / TEST).mkdir(exist_ok=True)
    paths = {name: f"{TEST}/{name}.png" for name in ("image", "frame")}
    for name, pixels in (("image", image), ("frame", frame)):
        pixels.save(folder / paths[name], optimize=True)
    paths["prediction"] = f"{TEST}/prediction.json"
    _write_json(folder / paths["prediction"], expected_prediction(run, model, frame))
    page: dict[str, Any] = json.loads((folder / PAGE).read_text(encoding="utf-8"))
    size = sum((folder / one).stat().st_size for one in paths.values())
    _write_json(folder / PAGE, page | {"test": {**paths, "bytes": size}}, indent=1)


def expected_prediction(run: Runner, model: Network, frame: Image.Image) -> dict[str, Any]:
    """The prediction that a page should make: a quantized file's own, otherwise PyTorch's.

    `frame` is an RGB image of the file's size. `Expected` in the page's `types.js` describes the
    fields.
    """
    metadata, config = run.metadata, run.metadata.config
    task = get_task(config.task).export
    if metadata.quantize is not None:
        outputs = [torch.from_numpy(part) for part in run(np.asarray(frame)[None])]
        prediction = task.reference_of_file(outputs, config.num_classes)
        return {"by": run.runtime, "tolerance": None, **prediction}
    tolerance = TOLERANCES[metadata.precision]
    with torch.inference_mode():
        images = image_to_tensor(frame, model.config.preprocessing)[None]
        prediction = task.reference(fuse(model), images, tolerance)
    version = importlib.metadata.version("torch")
    return {"by": f"PyTorch {version}", "tolerance": tolerance, **prediction}


def _write_json(file: Path, content: object, indent: int | None = None) -> None:
    separators = None if indent else (",", ":")
    text = json.dumps(content, ensure_ascii=False, indent=indent, separators=separators)
    file.write_text(text, encoding="utf-8")


def _description(metadata: FileMetadata, folder: Path) -> dict[str, Any]:
    """The content of `page.json`; `PageInfo` in its `types.js` describes the fields."""
    config, strings = metadata.config, metadata.to_strings()
    preprocessing = asdict(config.preprocessing)
    builds = {
        name: {
            **dict(zip(("script", "binary"), paths, strict=True)),
            "bytes": sum((folder / one).stat().st_size for one in paths),
        }
        for name, build in BUILDS.items()
        for paths in [[f"{RUNTIME}/{file}" for file in build]]
    }
    classes = config.classes or tuple(f"class {label}" for label in range(config.num_classes))
    return {
        "model": config.model,
        "task": config.task,
        "classes": classes,
        "colours": [
            f"#{red:02x}{green:02x}{blue:02x}"
            for red, green, blue in get_task(config.task).palette(classes)
        ],
        "preprocessing": {
            field: preprocessing[field]
            for field in ("resize_mode", "resize", "crop", "interpolation")
        },
        "multiple": SIZE_MULTIPLE,
        "longest": MAX_ASPECT_RATIO,
        "vertical_first": _resizes_vertically_first(),
        "dynamic": metadata.dynamic == "size",
        "precision": metadata.precision,
        "quantize": metadata.quantize,
        "source": config.source,
        "weights": metadata.weights,
        "licence": strings["licence"],
        "version": strings["mobilevit_version"],
        "file": {"path": MODEL, "bytes": (folder / MODEL).stat().st_size},
        "runtime": {"name": NAME, "version": VERSION, **builds},
        "test": None,
    }


def _resizes_vertically_first() -> bool:
    """Whether Pillow resizes images that shrink mostly in height vertically first, as from 13 on.

    Values are rounded in between, so the order matters to the page, which resizes as Pillow does.
    """
    noise = np.random.default_rng(0).integers(0, 256, (72, 65), np.uint8)
    image, bilinear = Image.fromarray(noise), Image.Resampling.BILINEAR
    vertical_first = image.resize((65, 64), bilinear).resize((64, 64), bilinear)
    return vertical_first.tobytes() == image.resize((64, 64), bilinear).tobytes()


BACKEND = Backend(
    name="web",
    suffix=".web",
    extra="onnx",
    write_prepared=write,
    open=open_page,
    by_suffix=False,
    is_folder=True,
    dynamic=("size",),
    quantize_modes=("int8",),
    supports_nms=True,
    cross_layer_equalization=True,
    runtime_tarball=provide,
    check_output=check_output,
    add_self_test=add_self_test,
)
