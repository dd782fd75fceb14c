"""The public names, and where they are; `__init__.py` imports each at its first use."""

from mobilevit.checkpoints.create import create_model as create_model
from mobilevit.checkpoints.create import load as load
from mobilevit.checkpoints.folder import save as save
from mobilevit.commands.benchmark.command import BenchmarkOptions as BenchmarkOptions
from mobilevit.commands.benchmark.command import benchmark as benchmark
from mobilevit.commands.check import check as check
from mobilevit.commands.convert import convert as convert
from mobilevit.commands.demo import demo as demo
from mobilevit.commands.evaluate import evaluate as evaluate
from mobilevit.commands.export import export as export
from mobilevit.commands.models import describe as describe
from mobilevit.commands.predict import predict as predict
from mobilevit.commands.serve import serve as serve
from mobilevit.commands.shard import shard as shard
from mobilevit.commands.sweep import sweep as sweep
from mobilevit.data.options import DataOptions as DataOptions
from mobilevit.exports.options import ExportOptions as ExportOptions
from mobilevit.models.fuse import fuse as fuse
from mobilevit.models.registry import list_models as list_models
from mobilevit.tasks.classification.options import ClassificationOptions as ClassificationOptions
from mobilevit.tasks.detection.options import DetectionOptions as DetectionOptions
from mobilevit.tasks.segmentation.options import SegmentationOptions as SegmentationOptions
from mobilevit.training.options import OptimOptions as OptimOptions
from mobilevit.training.options import SamplerOptions as SamplerOptions
from mobilevit.training.options import TrainOptions as TrainOptions
from mobilevit.training.train import train as train
