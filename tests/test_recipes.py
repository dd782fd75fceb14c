"""Recipes are what `train` takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mobilevit.__main__ import call
from mobilevit.commands.sweep import read_space
from mobilevit.training.options import TrainOptions

RECIPES = sorted((Path(__file__).resolve().parents[1] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_understood(recipe: Path) -> None:
    def received(options: TrainOptions, *, resume: bool = False) -> TrainOptions:
        return options

    words = ["--config", str(recipe), "--data.root", "photos", "--out", "run"]
    options = call("train", received, words)
    stated = yaml.safe_load(recipe.read_text())
    assert options.epochs == stated["epochs"] and options.data.root == "photos"
    # Its head says the command that repeats it.
    assert f"--config recipes/{recipe.name}" in recipe.read_text()


def test_the_space_in_the_sweeps_recipe_is_one() -> None:
    text = next(recipe for recipe in RECIPES if recipe.stem == "imagenette_sweep").read_text()
    space = text.partition("--space '")[2].partition("'")[0]
    assert [axis.name for axis in read_space(space, TrainOptions.flag_types())] == [
        "optim.weight_decay",
        "classification.augment.rand_augment",
        "classification.augment.mixup",
    ]
