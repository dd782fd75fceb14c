"""Options of a run: what is out of range is refused by name."""

import re

import pytest

from mobilevit.__main__ import main
from mobilevit.data.options import DataOptions
from mobilevit.tasks.classification.distill import DistillOptions
from mobilevit.tasks.classification.transforms import AugmentOptions
from mobilevit.training.options import OptimOptions, SamplerOptions


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
        (DistillOptions, "distill.weight", (-0.1, 1.1, float("nan"), 0.5)),  # there is no teacher
        (DistillOptions, "distill.temperature", (0.0, -1.0, float("inf"), float("nan"), 2.0)),
        (AugmentOptions, "augment.scale", ((0.0, 1.0), (0.5, 0.1), (0.5, 1.5))),
        (AugmentOptions, "augment.ratio", ((0.0, 1.0), (2.0, 1.0))),
        (AugmentOptions, "augment.flip", (-0.1, 1.1)),
        (AugmentOptions, "augment.erase", (1.1,)),
        (AugmentOptions, "augment.mix_probability", (-0.1,)),
        (AugmentOptions, "augment.rand_augment", (-1,)),
        (AugmentOptions, "augment.rand_augment_magnitude", (31,)),
        (AugmentOptions, "augment.mixup", (-0.1,)),
        (AugmentOptions, "augment.cutmix", (float("nan"),)),
    ],
)
def test_options_out_of_range_are_named(kind, name, values):
    rest = {"root": "photos"} if kind is DataOptions else {}
    for value in values:
        with pytest.raises(ValueError, match=re.escape(name)):
            kind(**{name.partition(".")[2]: value}, **rest)


def test_options_out_of_range_reach_the_command_line(tmp_path, capsys):
    words = ["train", "--data.root", str(tmp_path), "--out", str(tmp_path / "run")]
    for flag, value in (("--augment.scale", "0,1"), ("--sampler.min_size", "0"), ("--size", "0")):
        assert main([*words, flag, value]) in (1, 2)
        assert flag[2:] in capsys.readouterr().err


def test_options_that_named_data_would_ignore_are_refused():
    for ignored in ({"on_bad": "skip"}, {"val_fraction": 0.3}):
        with pytest.raises(ValueError, match="own splits"):
            DataOptions(root="data", name="cifar10", **ignored)
