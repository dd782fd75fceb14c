"""Web pages: a folder of static files that runs a model in a browser, on the device itself."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from importlib.resources import as_file, files
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
from PIL import Image

from mobilevit.data.preprocessing import frame_image
from mobilevit.exports.backends.registry import FORMATS, Format, Runner
from mobilevit.exports.backends.web.onnxruntime_web import BUILDS, NAME, VERSION, provide, unpack
from mobilevit.exports.backends.web.self_test import expected_answer
from mobilevit.exports.prepare import Prepared, Request, Written
from mobilevit.exports.spec import ExportError, FileFacts
from mobilevit.models.config import MAX_ASPECT_RATIO, SIZE_MULTIPLE, ModelConfig
from mobilevit.models.registry import Network
from mobilevit.tasks.segmentation.dataset import voc_palette
from mobilevit.tasks.visualize import colour_of

WEB = Format(name="web", suffix=".web", folder=True, quantizations=("int8",))
"""Not among `FORMATS`: what is inside for other programs is an ONNX file, and pages may be called
anything."""

FACTS, MODEL, RUNTIME, TEST = "page.json", "model.onnx", "runtime", "test"
"""Files and folders of a page; `FACTS` tells it from other folders."""

LONGEST_PHOTO = 640
"""Pixels of the test photo's long side; it lies in the folder without loss."""


def is_page(folder: Path) -> bool:
    """Whether a folder is a page of this library."""
    return (folder / FACTS).is_file() and (folder / "index.html").is_file()


def get_ready(folder: Path, request: Request, tarball: str | Path | None = None) -> None:
    """See ahead of all work that a page can be written, and that its runtime is there.

    Args:
        folder: where it is to be; what is there is replaced only where it is a page too.
        request: what kind of file is wanted.
        tarball: see `mobilevit.exports.backends.web.onnxruntime_web.provide`.

    Raises:
        ExportError: it cannot.
    """
    if request.raw or request.dynamic == "batch":
        raise ExportError(
            "a page gives one photo at a time to its model and shows answers: raw and dynamic "
            "batch are not for pages"
        )
    if folder.exists() and not is_page(folder) and not _is_empty(folder):
        raise ExportError(
            f"{folder} is there and is no page of this library: it would be lost; name another "
            "folder"
        )
    provide(tarball)


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and next(folder.iterdir(), None) is None


def write(prepared: Prepared, path: Path) -> Written:
    """Write a prepared network as a page; `add_test` puts a test photo into it.

    Raises:
        ExportError: such a page cannot be made.
        MissingExtraError: onnx or onnxscript is not installed.
    """
    with as_file(files("mobilevit.exports.backends.web") / "page") as sources:
        copytree(sources, path, dirs_exist_ok=True)
    unpack(provide(), path / RUNTIME)
    written = FORMATS["onnx"].module().write(prepared, path / MODEL)
    facts = _facts(prepared.facts, path)
    (path / FACTS).write_text(json.dumps(facts, ensure_ascii=False, indent=1), encoding="utf-8")
    return replace(written, path=path)


def open_file(path: Path, threads: int) -> Runner:
    """Open a page's model in ONNX Runtime, on the CPU.

    Raises:
        ExportError: it is damaged, or no page.
        MissingExtraError: onnxruntime is not installed.
    """
    if not is_page(path):
        raise ExportError(f"{path} is no page of `mobilevit export`: it has no {FACTS}")
    return FORMATS["onnx"].module().open_file(path / MODEL, threads)


def add_test(folder: Path, network: Network, photo: Image.Image) -> None:
    """Put a photo into a page, and what Python says of it: the page compares itself with that.

    Args:
        folder: the page.
        network: what it was made of.
        photo: an RGB image; it is reduced to 640 pixels.
    """
    run = open_file(folder, 1)
    photo = photo.copy()
    photo.thumbnail((LONGEST_PHOTO, LONGEST_PHOTO))
    frame = frame_image(photo, run.facts.config.preprocessing)
    expected = expected_answer(run, network, frame)
    (folder / TEST).mkdir(exist_ok=True)
    test = {name: f"{TEST}/{name}.png" for name in ("photo", "frame")}
    for name, image in (("photo", photo), ("frame", frame)):
        image.save(folder / test[name], optimize=True)
    test["answer"] = f"{TEST}/answer.json"
    answer = json.dumps(expected, separators=(",", ":"))
    (folder / test["answer"]).write_text(answer, encoding="utf-8")
    facts: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    bytes_ = sum((folder / one).stat().st_size for one in test.values())
    facts["test"] = {**test, "bytes": bytes_}
    (folder / FACTS).write_text(json.dumps(facts, ensure_ascii=False, indent=1), encoding="utf-8")


def _facts(facts: FileFacts, folder: Path) -> dict[str, Any]:
    """What a page knows of its model; `Facts` in its `types.js` says what each is."""
    config, texts = facts.config, facts.texts()
    preprocessing = asdict(config.preprocessing)
    builds = {
        backend: {
            **dict(zip(("script", "binary"), paths, strict=True)),
            "bytes": sum((folder / one).stat().st_size for one in paths),
        }
        for backend, build in BUILDS.items()
        for paths in [[f"{RUNTIME}/{name}" for name in build.taken()]]
    }
    names = config.classes or tuple(f"class {label}" for label in range(config.num_classes))
    return {
        "model": config.model,
        "task": config.task,
        "classes": names,
        "colours": _colours(config),
        "preprocessing": {
            name: preprocessing[name] for name in ("resize_mode", "resize", "crop", "interpolation")
        },
        "multiple": SIZE_MULTIPLE,
        "longest": MAX_ASPECT_RATIO,
        "tall_down": _tall_down(),
        "dynamic": facts.dynamic == "size",
        "precision": facts.precision,
        "quantize": facts.quantize,
        "source": config.source,
        "weights": facts.weights,
        "licence": texts["licence"],
        "version": texts["mobilevit_version"],
        "file": {"path": MODEL, "bytes": (folder / MODEL).stat().st_size},
        "runtime": {"name": NAME, "version": VERSION, **builds},
        "test": None,
    }


def _tall_down() -> bool:
    """Whether Pillow resizes what loses height above all down before across, as from 13 on.

    Values are rounded in between, so the order shows.
    """
    noise = np.random.default_rng(0).integers(0, 256, (72, 65), np.uint8)
    image, bilinear = Image.fromarray(noise), Image.Resampling.BILINEAR
    down_first = image.resize((65, 64), bilinear).resize((64, 64), bilinear)
    return down_first.tobytes() == image.resize((64, 64), bilinear).tobytes()


def _colours(config: ModelConfig) -> list[str]:
    """The classes' colours, those that `predict` draws with, as CSS writes them."""
    count = config.num_classes
    if config.task == "segmentation":
        colours = voc_palette(count)
    else:
        colours = [colour_of(label) for label in range(count)]
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in colours]
