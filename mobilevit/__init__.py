"""MobileViT, light-weight vision transformers; public names are imported at their first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobilevit.checkpoints.create import create_model, load
    from mobilevit.checkpoints.folder import save
    from mobilevit.commands.benchmark.command import BenchmarkOptions, benchmark
    from mobilevit.commands.check import check
    from mobilevit.commands.convert import convert
    from mobilevit.commands.demo import demo
    from mobilevit.commands.evaluate import evaluate
    from mobilevit.commands.export import export
    from mobilevit.commands.models import describe
    from mobilevit.commands.predict import predict
    from mobilevit.commands.serve import serve
    from mobilevit.commands.shard import shard
    from mobilevit.commands.sweep import sweep
    from mobilevit.data.options import DataOptions
    from mobilevit.exports.options import ExportOptions
    from mobilevit.models.fuse import fuse
    from mobilevit.models.registry import list_models
    from mobilevit.tasks.classification.options import ClassificationOptions
    from mobilevit.tasks.detection.options import DetectionOptions
    from mobilevit.tasks.segmentation.options import SegmentationOptions
    from mobilevit.training.options import OptimOptions, SamplerOptions, TrainOptions
    from mobilevit.training.train import train

_HOMES = {
    "BenchmarkOptions": "mobilevit.commands.benchmark.command",
    "ClassificationOptions": "mobilevit.tasks.classification.options",
    "DataOptions": "mobilevit.data.options",
    "DetectionOptions": "mobilevit.tasks.detection.options",
    "OptimOptions": "mobilevit.training.options",
    "SamplerOptions": "mobilevit.training.options",
    "SegmentationOptions": "mobilevit.tasks.segmentation.options",
    "TrainOptions": "mobilevit.training.options",
    "ExportOptions": "mobilevit.exports.options",
    "benchmark": "mobilevit.commands.benchmark.command",
    "check": "mobilevit.commands.check",
    "convert": "mobilevit.commands.convert",
    "create_model": "mobilevit.checkpoints.create",
    "demo": "mobilevit.commands.demo",
    "evaluate": "mobilevit.commands.evaluate",
    "export": "mobilevit.commands.export",
    "fuse": "mobilevit.models.fuse",
    "list_models": "mobilevit.models.registry",
    "load": "mobilevit.checkpoints.create",
    "describe": "mobilevit.commands.models",
    "predict": "mobilevit.commands.predict",
    "save": "mobilevit.checkpoints.folder",
    "serve": "mobilevit.commands.serve",
    "shard": "mobilevit.commands.shard",
    "sweep": "mobilevit.commands.sweep",
    "train": "mobilevit.training.train",
}

__all__ = [
    "BenchmarkOptions",
    "ClassificationOptions",
    "DataOptions",
    "DetectionOptions",
    "ExportOptions",
    "OptimOptions",
    "SamplerOptions",
    "SegmentationOptions",
    "TrainOptions",
    "benchmark",
    "check",
    "convert",
    "create_model",
    "demo",
    "describe",
    "evaluate",
    "export",
    "fuse",
    "list_models",
    "load",
    "predict",
    "save",
    "serve",
    "shard",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mobilevit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
