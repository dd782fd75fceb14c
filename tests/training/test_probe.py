"""What cannot train is refused before the first step: too few values, too little memory."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from mobilevit.data.sampler import MultiScaleSchedule
from mobilevit.models.registry import build
from mobilevit.training import probe
from mobilevit.training.errors import TrainingError
from mobilevit.training.options import SamplerOptions
from mobilevit.training.probe import check_batch_norms, check_memory
from tests.training.runs import STANDARD, colour_images, small


def schedule(*sizes: int, batch: int, samples: int = 40) -> MultiScaleSchedule:
    return MultiScaleSchedule(samples=samples, sizes=sizes, base_size=min(sizes), base_batch=batch)


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize(
    "name",
    [
        "mobilevit_xxs",
        "mobilevitv2_050",
        "ssdlite_mobilevit_xxs",
        "deeplabv3_mobilevit_xxs",
        "pspnet_mobilevitv2_050",
    ],
)
def test_one_image_is_refused_exactly_if_it_cannot_train(
    name: str, size: int, freeze: bool
) -> None:
    network = build(name).train()
    plan = schedule(size, batch=1)
    if freeze:
        network.backbone.eval()
    try:
        network(torch.rand(1, 3, size, size))
    except ValueError:
        with pytest.raises(TrainingError, match=f"one image of {size} px .* at least 2, or"):
            check_batch_norms(network, plan, epochs=1, freeze_backbone=freeze)
    else:
        check_batch_norms(network, plan, epochs=1, freeze_backbone=freeze)
    check_batch_norms(network, schedule(size, batch=2), epochs=1, freeze_backbone=freeze)


def test_every_size_of_the_schedule_counts() -> None:
    """A batch of 2 at the base size is one of 1 at the largest."""
    plan = schedule(160, 224, batch=2)
    with pytest.raises(
        TrainingError, match=r"one image of 224 px .* batch norm \S*norm .* at least 4"
    ):
        check_batch_norms(build("ssdlite_mobilevit_xxs"), plan, epochs=1, freeze_backbone=False)


def test_a_single_training_image_is_named() -> None:
    with pytest.raises(TrainingError, match="one training image"):
        check_batch_norms(
            build("mobilevit_xxs"),
            schedule(32, batch=4, samples=1),
            epochs=1,
            freeze_backbone=False,
        )


def test_a_run_is_refused_before_its_first_step(tmp_path: Path) -> None:
    images = colour_images(tmp_path / "images", count=3)
    with pytest.raises(TrainingError, match="batch_size of at least 2"):
        small(images, tmp_path / "run", batch_size=1, sampler=STANDARD)
    assert not (tmp_path / "run" / "checkpoints").exists()


class Hungry(nn.Module):
    """Has memory for so many pixels."""

    def __init__(self, pixels: int, error: type[RuntimeError], text: str) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.pixels, self.error, self.text = pixels, error, text

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.numel() > 3 * self.pixels:
            raise self.error(self.text)
        return self.scale * images


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 1 GiB"),
        (RuntimeError, "DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    ],
)
@pytest.mark.parametrize(
    ("images", "hint"), [(24, None), (9, "batch_size 8 fits"), (0.5, "not even")]
)
def test_too_little_memory_names_the_batch_size_that_fits(
    error: type[RuntimeError], text: str, images: float, hint: str | None
) -> None:
    plan = MultiScaleSchedule(samples=99, sizes=(32, 64), base_size=64, base_batch=16)
    network = Hungry(int(images * 64 * 64), error, text)
    if hint is None:
        check_memory(network, plan, nullcontext())
        return
    with pytest.raises(TrainingError, match=f"16 images of 64 px.*{hint}"):
        check_memory(network, plan, nullcontext())


def test_other_errors_are_shown_as_they_are() -> None:
    network = Hungry(0, RuntimeError, "a kernel is missing")
    with pytest.raises(RuntimeError, match="a kernel is missing"):
        check_memory(network, schedule(32, 64, batch=2), nullcontext())


@pytest.mark.parametrize("name", ["mobilevit_xxs", "deeplabv3_mobilevitv2_050"])
def test_the_check_leaves_network_and_random_numbers_as_they_are(name: str) -> None:
    network = build(name, num_classes=3).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = torch.get_rng_state()
    check_memory(network, schedule(32, 64, batch=8), nullcontext())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_runs_of_several_sizes_check_their_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = colour_images(tmp_path / "images", count=3)
    monkeypatch.setattr(probe, "_fits", lambda network, count, size: count <= 2)
    sampler = SamplerOptions(min_size=32, max_size=64, multiple=32)
    with pytest.raises(TrainingError, match=r"need more memory .* batch_size"):
        small(images, tmp_path / "run", batch_size=12, sampler=sampler)
