"""Options of a run: what is out of range is refused by name."""

import re

import pytest

from mobilevit.__main__ import main
from mobilevit.data.options import DataOptions
from mobilevit.tasks.classification.distill import DistillOptions
from mobilevit.tasks.classification.options import ClassificationOptions
from mobilevit.tasks.classification.transforms import AugmentOptions
from mobilevit.training.options import OptimOptions, SamplerOptions, TrainOptions


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        (DataOptions, "data.val_fraction", (0.0, 1.0, -1.0)),
        (DataOptions, "data.workers", (-1,)),
        (SamplerOptions, "sampler.min_size", (0, -32)),
        (SamplerOptions, "sampler.max_size", (0,)),
        (SamplerOptions, "sampler.scales", (0,)),
        (SamplerOptions, "sampler.multiple", (0,)),
        (OptimOptions, "optim.lr", (0.0, -1.0, float("nan"), float("inf"))),
        (OptimOptions, "optim.name", ("adam", "sgd")),  # sgd has no lr here
        (OptimOptions, "optim.momentum", (-0.1, 1.0, float("nan"), 0.5)),  # adamw has none
        (OptimOptions, "optim.final_lr", (-0.1, 1.1)),
        (OptimOptions, "optim.warmup", (-0.1, 1.1)),
        (OptimOptions, "optim.head_lr", (0.0,)),
        (OptimOptions, "optim.weight_decay", (-0.1, float("nan"))),
        (OptimOptions, "optim.clip", (0.0, -1.0)),
        (OptimOptions, "optim.accumulate", (0,)),
        (TrainOptions, "epochs", (0,)),
        (TrainOptions, "size", (0,)),
        (TrainOptions, "batch_size", (0,)),
        (TrainOptions, "threads", (0,)),
        (TrainOptions, "patience", (0,)),
        (TrainOptions, "ema", (1.0, -0.1)),
        (TrainOptions, "checkpoint_minutes", (-1.0,)),
        (TrainOptions, "precision", ("fp8",)),
        (ClassificationOptions, "classification.label_smoothing", (1.0, -0.1)),
        (
            DistillOptions,
            "classification.distill.weight",
            (-0.1, 1.1, float("nan"), 0.5),
        ),  # there is no teacher
        (
            DistillOptions,
            "classification.distill.temperature",
            (0.0, float("inf"), 2.0),
        ),
        (AugmentOptions, "classification.augment.scale", ((0.0, 1.0), (0.5, 0.1), (0.5, 1.5))),
        (AugmentOptions, "classification.augment.ratio", ((0.0, 1.0), (2.0, 1.0))),
        (AugmentOptions, "classification.augment.flip", (-0.1, 1.1)),
        (AugmentOptions, "classification.augment.erase", (1.1,)),
        (AugmentOptions, "classification.augment.mix_probability", (-0.1,)),
        (AugmentOptions, "classification.augment.rand_augment", (-1,)),
        (AugmentOptions, "classification.augment.rand_augment_magnitude", (31,)),
        (AugmentOptions, "classification.augment.mixup", (-0.1,)),
        (AugmentOptions, "classification.augment.cutmix", (float("nan"),)),
    ],
)
def test_options_out_of_range_are_named(kind, name, values):
    rest = {"root": "photos"} if kind is DataOptions else {}
    if kind is TrainOptions:
        rest = {"data": DataOptions(root="photos"), "out": "run"}
    for value in values:
        with pytest.raises(ValueError, match=re.escape(name)):
            kind(**{name.rpartition(".")[2]: value}, **rest)


def test_options_out_of_range_reach_the_command_line(tmp_path, capsys):
    words = ["train", "--data.root", str(tmp_path), "--out", str(tmp_path / "run")]
    for flag, value in (
        ("--classification.augment.scale", "0,1"),
        ("--sampler.min_size", "0"),
        ("--size", "0"),
    ):
        assert main([*words, flag, value]) in (1, 2)
        assert flag[2:] in capsys.readouterr().err


def test_options_that_named_data_would_ignore_are_refused():
    for ignored in ({"on_bad": "skip"}, {"val_fraction": 0.3}):
        with pytest.raises(ValueError, match="own splits"):
            DataOptions(root="data", name="cifar10", **ignored)


def options(**values):
    return TrainOptions(data=DataOptions(root="photos"), out="run", **values)


def test_options_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="give it as weights"):
        options(quantize_aware=True)
    with pytest.raises(ValueError, match="cannot be combined"):
        options(weights="anything", quantize_aware=True, compile=True)
    with pytest.raises(ValueError, match=r"sampler\.mode multiscale"):
        SamplerOptions(mode="standard", min_size=32)


def test_a_recipe_has_the_options_of_the_task_as_a_group():
    changed = options(epochs=3).with_option("detection.augment.flip", 0.0).with_option("seed", 2)
    recipe = changed.as_recipe()
    assert (recipe["epochs"], recipe["seed"]) == (3, 2)
    assert recipe["detection"]["augment"]["flip"] == 0.0
    assert not recipe.keys() & {"out", "task_options", "classification"}
    with pytest.raises(ValueError, match="segmentation options are not for detection"):
        changed.with_option("segmentation.augment.flip", 0.0)


def test_groups_of_two_tasks_are_refused(tmp_path, capsys):
    words = ["train", "--data.root", str(tmp_path), "--out", str(tmp_path / "run")]
    words += ["--detection.augment.flip", "0"]
    assert main([*words, "--classification.label_smoothing", "0"]) == 1
    assert "classification and detection: " in capsys.readouterr().err
    assert main([*words, "--task", "classification"]) == 1
    assert "detection options are not for classification" in capsys.readouterr().err
