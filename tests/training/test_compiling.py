"""Networks that are compiled in training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import nn
from torch._dynamo.utils import counters

from mobilevit.checkpoints.create import load
from mobilevit.data.sampler import MultiScaleSchedule
from mobilevit.models.registry import NetworkOptions
from mobilevit.training import compiling
from mobilevit.training.compiling import Compiler, full_batch_shapes
from mobilevit.training.errors import TrainingError
from mobilevit.training.module import TrainingModule
from mobilevit.training.options import OptimOptions, SamplerOptions
from tests.numerics import assert_close
from tests.training.runs import colour_images, small

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        # torch's own code, when it compiles.
        "ignore::DeprecationWarning:torch.*",
        "ignore:.*is deprecated:FutureWarning",
    ),
]


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    """No graphs of other tests."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def tiny() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.SiLU())


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def test_one_graph_for_each_size_of_the_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    schedule = MultiScaleSchedule(samples=31, sizes=(32, 48, 64), base_size=48, base_batch=4)
    torch.manual_seed(0)
    plain, network = tiny(), tiny()
    network.load_state_dict(plain.state_dict())
    shapes = full_batch_shapes(schedule)
    compiler = Compiler(network, shapes)
    seen, odd = set(), 0
    for epoch in range(2):
        for height, width, count in schedule.epoch(epoch):
            images = torch.rand(count, 3, height, width)
            with compiler.around(images):
                made = network(images)
            expected = plain(images)
            assert_close(made, expected, tolerance=1e-4)
            plain.zero_grad()
            network.zero_grad()
            made.square().mean().backward()
            expected.square().mean().backward()
            ours, theirs = (
                torch.cat([value.grad.flatten() for value in net.parameters()])
                for net in (network, plain)
            )
            assert (ours - theirs).norm() < 1e-3 * theirs.norm()
            seen.add(tuple(images.shape))
            odd += tuple(images.shape) not in shapes
    assert odd  # of batches that end an epoch, which have no graph
    assert graphs() == len(seen & shapes) == 3
    with compiler.around(None), torch.no_grad():
        network.eval()(torch.rand(2, 3, 64, 64))
    assert graphs() == len(seen & shapes)


def test_more_sizes_than_torch_usually_compiles_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    shapes = [(2, 3, size, size) for size in range(8, 8 + 12)]
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU())
    compiler = Compiler(network, shapes)
    for shape in shapes * 2:
        with compiler.around(images := torch.rand(shape)):
            network(images)
    assert graphs() == len(shapes) > torch._dynamo.config.recompile_limit


def test_by_torchs_own_compiler() -> None:
    torch.manual_seed(0)
    network, plain = tiny(), tiny()
    plain.load_state_dict(network.state_dict())
    compiler = Compiler(network, [(4, 3, 16, 16)])
    images = torch.rand(4, 3, 16, 16)
    with compiler.around(images):
        made = network(images)
    assert_close(made, plain(images))
    assert graphs() == 1
    assert network.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(network.state_dict(), plain.state_dict())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_images(tmp_path_factory.mktemp("images"), count=10, classes=2)


def test_a_run_gives_what_it_gives_without(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    searched = {}
    step = TrainingModule.training_step

    def recording(module: TrainingModule, batch: Any, batch_idx: int) -> Any:
        searched[tuple(batch[0].shape)] = torch.backends.cudnn.benchmark
        return step(module, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", recording)
    for name in ("plain", "compiled"):
        small(
            images,
            tmp_path / name,
            epochs=1,
            size=64,
            batch_size=4,
            sampler=SamplerOptions(min_size=32, max_size=64),
            optim=OptimOptions(),
            network=NetworkOptions(dropout=0.0, classifier_dropout=0.0),  # whose draws differ
            compile=name == "compiled",
        )
    assert 0 < graphs() <= 2
    # cuDNN looks for the fastest algorithm for the same batches.
    assert not torch.backends.cudnn.benchmark
    assert set(searched.values()) == {False, True} and sum(searched.values()) == graphs()
    plain, compiled = (load(tmp_path / name / "model") for name in ("plain", "compiled"))
    # Together: a value without a gradient but for rounding (a key's bias) moves as rounding has it.
    one, other = (
        torch.cat([value.flatten().float() for value in net.state_dict().values()])
        for net in (compiled, plain)
    )
    assert (one - other).norm() < 1e-3 * other.norm()


def test_without_a_compiler(images: Path, tmp_path: Path) -> None:
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(TrainingError, match=r"needs a C\+\+ compiler"),
    ):
        small(images, tmp_path / "run", compile=True)
