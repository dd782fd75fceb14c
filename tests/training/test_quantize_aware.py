"""Training that rounds as int8 files do: the rounding itself, what it leaves, what it mends."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from mobilevit.checkpoints.create import create_model, load
from mobilevit.checkpoints.folder import digest, save
from mobilevit.models.layers import InvertedResidual
from mobilevit.tasks.segmentation.options import SegmentationOptions
from mobilevit.tasks.segmentation.transforms import SegmentationAugment
from mobilevit.training.options import OptimOptions
from mobilevit.training.quantize_aware import (
    FakeQuantize,
    add_fake_quantization,
    float_tensors,
    without_fake_quantization,
)
from tests.training.runs import STANDARD, colour_images, interrupted_at, small

pytestmark = pytest.mark.slow

MODELS = ["mobilevit_xxs", "mobilevitv2_050", "ssdlite_mobilevit_xxs", "deeplabv3_mobilevit_xxs"]


def new(name):
    torch.manual_seed(0)
    return create_model(name, num_classes=3)


def tensors(outputs):
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


@pytest.mark.parametrize("name", MODELS)
def test_a_network_rounds_in_all_its_layers_and_its_float_copy_nowhere(name):
    before = new(name).train()
    model = copy.deepcopy(before)
    add_fake_quantization(model)
    layers = [one for one in model.modules() if isinstance(one, nn.Conv2d | nn.Linear)]
    assert all(isinstance(one.quantize_input, FakeQuantize) for one in layers)
    images = torch.rand(2, 3, 64, 64)
    sum(one.square().mean() for one in tensors(model(images))).backward()
    assert all(one.parametrizations.weight.original.grad is not None for one in layers)
    assert all(
        float(one.quantize_input.high) > 0 for one in layers if not one.quantize_input.channels
    )
    model.zero_grad()
    plain = without_fake_quantization(model)
    assert plain.state_dict().keys() == before.state_dict().keys()
    before.load_state_dict(plain.state_dict())
    for network in (model, plain, before):
        network.eval()
    with torch.inference_mode():
        rounded, ours, theirs = (tensors(network(images)) for network in (model, plain, before))
    assert all(map(torch.equal, ours, theirs))
    assert not torch.equal(rounded[0], ours[0])
    assert without_fake_quantization(before) is before


def test_a_copy_rounds_within_its_own_ranges():
    model = new("mobilevit_xxs").train()
    add_fake_quantization(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin(torch.rand(2, 3, 32, 32))
    assert float(model.backbone.stem.conv.quantize_input.high) == 0
    assert float(twin.backbone.stem.conv.quantize_input.high) > 0


def test_ranges_follow_training_and_stand_still_in_validation():
    model = new("mobilevit_xxs").train()
    add_fake_quantization(model)
    stem = model.backbone.stem.conv.quantize_input
    with torch.no_grad():
        model(torch.full((2, 3, 32, 32), 0.5))
        assert float(stem.high) == 0.5  # that of the first batch
        model(torch.ones(2, 3, 32, 48))  # another size, too
        assert float(stem.high) == pytest.approx(0.5 + 0.01 * 0.5)
        still = digest(model.state_dict())
        model.eval()
        model(torch.full((2, 3, 64, 64), 9.0))
        assert digest(model.state_dict()) == still


def test_channels_that_exports_equalize_have_their_own_ranges():
    model = new("mobilevit_xxs")
    add_fake_quantization(model)
    per_channel = {
        name
        for name, one in model.named_modules()
        if isinstance(one, FakeQuantize) and one.channels
    }
    blocks = [n for n, one in model.named_modules() if isinstance(one, InvertedResidual)]
    ends = ("expand.norm.quantize_output", "depthwise.conv.quantize_input")
    assert per_channel == {f"{n}.{end}" for n in blocks for end in ends}


class Spoilt(nn.Module):
    """Two linear layers, and between them one channel that outreaches the others by far."""

    def __init__(self, times=200):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)
        with torch.no_grad():
            for values in (self.first.weight, self.first.bias):
                values[0] *= times
            self.second.weight[:, 0] /= times

    def forward(self, x):
        return self.second(F.relu(self.first(x)))


def test_a_network_that_rounding_destroys_recovers():
    """Training in float sees nothing to mend, for in float nothing is wrong."""
    trained = Spoilt()
    x = torch.randn(512, 8)
    target = trained(x).detach()

    def error(model):
        model = copy.deepcopy(model)
        add_fake_quantization(model)
        with torch.no_grad():
            return float((model(x) - target).square().mean() / target.var())

    def tuned(*, aware):
        model = copy.deepcopy(trained)
        if aware:
            add_fake_quantization(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
        for _ in range(200):
            optimizer.zero_grad()
            F.mse_loss(model(x), target).backward()
            optimizer.step()
        plain = copy.deepcopy(trained)
        plain.load_state_dict(float_tensors(model))
        return error(plain)

    before, plain, aware = error(trained), tuned(aware=False), tuned(aware=True)
    assert before > 0.1
    assert plain > 0.5 * before
    assert aware < 0.3 * before


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return colour_images(tmp_path_factory.mktemp("images"), count=15, classes=2)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A classifier to begin with."""
    torch.manual_seed(0)
    return str(
        save(create_model("mobilevit_xxs", num_classes=2), tmp_path_factory.mktemp("s") / "m")
    )


def run(images, out, start, **options):
    """Seconds long; of several sizes."""
    defaults = {"optim": OptimOptions(lr=0.003), "quantize_aware": True, "weights": start}
    return small(images, out, **{**defaults, "model": None, **options})


@pytest.fixture(scope="module")
def whole(images, start, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    return run(images, out, start), out


def test_the_model_folder_is_that_of_a_float_run(whole, images, start, tmp_path, capsys):
    out = whole[1]
    run(images, tmp_path / "run", start, epochs=1, quantize_aware=False)
    assert "int8" not in capsys.readouterr().out
    ours, theirs = (
        load_file(one / "model" / "model.safetensors") for one in (out, tmp_path / "run")
    )
    assert {key: one.shape for key, one in ours.items()} == {
        key: one.shape for key, one in theirs.items()
    }
    config = load(out / "model").config
    assert config.source.endswith("quantization-aware")
    assert "quantization-aware" in (out / "report.html").read_text()
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    for kind in ("state_dict", "current_model_state"):  # averaged, and not
        assert any(key.endswith("quantize_input.low") for key in state[kind])


def test_a_resumed_run_comes_to_the_same_end(whole, images, start, tmp_path):
    with interrupted_at(6):
        run(images, tmp_path / "run", start)
    run(images, tmp_path / "run", start, resume=True)
    states = [
        torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
        for out in (whole[1], tmp_path / "run")
    ]
    for kind in ("state_dict", "current_model_state"):
        assert digest(states[0][kind]) == digest(states[1][kind])


def test_a_step_without_a_finite_gradient_moves_no_range(images, start, tmp_path, monkeypatch):
    from mobilevit.training import module

    clip = module.TrainingModule.configure_gradient_clipping
    seen = []

    def spoil(self, optimizer, *arguments, **options):
        before = digest(dict(self.model.named_buffers()))
        if self.trainer.global_step == 2:
            next(self.model.parameters()).grad.fill_(float("nan"))
        clip(self, optimizer, *arguments, **options)
        seen.append((before, digest(dict(self.model.named_buffers()))))

    monkeypatch.setattr(module.TrainingModule, "configure_gradient_clipping", spoil)
    run(images, tmp_path / "run", start, epochs=1)
    changed = [before != after for before, after in seen]
    assert changed[:2] == [False, False] and changed[2]
    assert seen[2][1] == seen[1][1]  # as after the step ahead of it


def test_mixed_precision_and_a_frozen_backbone(images, start, tmp_path):
    run(images, tmp_path / "run", start, epochs=1, precision="bf16", freeze_backbone=True, ema=0)
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    stem = state["state_dict"]["model.backbone.stem.conv.quantize_input.high"]
    assert 0 < float(stem) <= 1  # frozen layers round too


SMALL = {"epochs": 1, "size": 64, "batch_size": 4, "sampler": STANDARD}


def test_segmentation(tmp_path):
    draw = np.random.default_rng(0)
    root = tmp_path / "data"
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for number in range(4):
            mask = np.zeros((64, 80), np.uint8)
            mask[10:40, 20:60] = 1
            grey = np.where(mask == 1, 220, 40) + draw.integers(-15, 15, mask.shape)
            image = Image.fromarray(np.repeat(grey.astype(np.uint8)[..., None], 3, 2))
            image.save(root / split / "images" / f"{number}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{number}.png")
    (root / "classes.txt").write_text("dark\nbright\n")
    begun = save(create_model("deeplabv3_mobilevit_xxs", num_classes=2), tmp_path / "m")
    run(
        root,
        tmp_path / "run",
        str(begun),
        **SMALL,
        task_options=SegmentationOptions(augment=SegmentationAugment(scale=(0.9, 1.2))),
    )
    assert load(tmp_path / "run" / "model").config.task == "segmentation"


def test_detection(tmp_path):
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        (tmp_path / "data" / split).mkdir(parents=True)
        notes = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "disc"}]}
        for number in range(4):
            values = draw.integers(0, 60, (64, 64, 3)).astype(np.uint8)
            values[16:48, 16:48] = 220
            name = f"{split}{number}.png"
            Image.fromarray(values).save(tmp_path / "data" / split / name)
            notes["images"].append({"id": number, "file_name": name, "width": 64, "height": 64})
            box = {"id": number + 1, "image_id": number, "category_id": 1}
            notes["annotations"].append(
                {**box, "bbox": [16, 16, 32, 32], "area": 1024, "iscrowd": 0}
            )
        (tmp_path / "data" / split / "_annotations.coco.json").write_text(json.dumps(notes))
    model = create_model("ssdlite_mobilevit_xxs", num_classes=1)
    model.config = replace(model.config, classes=("disc",))
    begun = save(model, tmp_path / "m")
    run(tmp_path / "data", tmp_path / "run", str(begun), **SMALL)
    assert load(tmp_path / "run" / "model").config.task == "detection"
