"""The examples do what they say: they run, and they learn."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import mobilevit
from mobilevit.checkpoints.write import write

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module", params=["folder", "authors", "timm", "transformers"])
def weights(request, tmp_path_factory) -> str:
    """An XXS in each layout."""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("weights") / ("w.pt" if request.param == "authors" else "w")
    write(mobilevit.create_model("mobilevit_xxs", num_classes=7), out, to=request.param)
    return str(out)


def part(example: str, name: str):
    return runpy.run_path(str(EXAMPLES / example))[name]


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_examples_run_as_they_stand(example):
    command = [sys.executable, "-W", "error::DeprecationWarning:__main__", EXAMPLES / example]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "torch.Size" in done.stdout


def test_a_unet_takes_weights_of_any_layout(weights):
    torch.manual_seed(0)
    model = part("unet.py", "UNet")("mobilevit_xxs", num_classes=3, weights=weights)
    stem = mobilevit.load(weights).backbone.stem.conv.weight
    assert torch.equal(model.backbone.stem.conv.weight, stem)
    images = torch.rand(2, 3, 50, 70)
    assert model(images).shape == (2, 3, 50, 70)


def test_a_unet_learns_where_it_is_bright():
    torch.manual_seed(0)
    model = part("unet.py", "UNet")("mobilevit_xxs", num_classes=2)
    images = torch.rand(2, 1, 8, 8).round().repeat_interleave(8, 2).repeat_interleave(8, 3)
    target = images[:, 0].long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    losses = []
    for _ in range(25):
        loss = F.cross_entropy(model(images.expand(-1, 3, -1, -1)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_faster_rcnn_trains_and_detects(weights):
    torch.manual_seed(0)
    model = part("faster_rcnn.py", "faster_rcnn")("mobilevit_xxs", num_classes=3, weights=weights)
    images = [torch.rand(3, 120, 160), torch.rand(3, 100, 100)]
    targets = [
        {"boxes": torch.tensor([[10.0, 20.0, 90.0, 80.0]]), "labels": torch.tensor([1])},
        {"boxes": torch.tensor([[5.0, 5.0, 50.0, 95.0]]), "labels": torch.tensor([2])},
    ]
    losses = model(images, targets)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert model.backbone.backbone.stem.conv.weight.grad.abs().sum() > 0
    found = model.eval()(images)
    assert [set(one) for one in found] == [{"boxes", "labels", "scores"}] * 2
