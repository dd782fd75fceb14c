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
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mobilevit.__main__ import main
from mobilevit.checkpoints.create import create_model, load
from mobilevit.checkpoints.folder import digest, save
from mobilevit.data.options import DataOptions
from mobilevit.models.layers import InvertedResidual
from mobilevit.tasks.segmentation.transforms import SegmentationAugment
from mobilevit.training.errors import Interrupted, TrainingError
from mobilevit.training.options import OptimOptions, SamplerOptions
from mobilevit.training.quantize_aware import Rounding, points, rounded, rounded_weight
from mobilevit.training.train import train

pytestmark = pytest.mark.slow

MODELS = ["mobilevit_xxs", "mobilevitv2_050", "ssdlite_mobilevit_xxs", "deeplabv3_mobilevit_xxs"]


def by_hand(values, low, high):
    """256 steps between two ends, in float64."""
    values, low, high = (np.asarray(one, np.float64) for one in (values, low, high))
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale


@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (7, 1, 3, 3), (6, 11)])
def test_weights_have_a_symmetric_range_for_each_output_channel(shape):
    torch.manual_seed(0)
    weight = torch.randn(shape) * torch.logspace(-3, 2, shape[0]).view(-1, *[1] * (len(shape) - 1))
    weight[1] = 0
    exact = weight.double().flatten(1).numpy()
    scale = np.abs(exact).max(1, keepdims=True) / 127
    expected = np.rint(exact / np.where(scale == 0, 1, scale)) * scale
    found = rounded_weight(weight).flatten(1).double().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-12)
    assert all(len(np.unique(row)) <= 255 for row in found)


def test_rounding_of_weights_and_folding_of_batch_norm_change_places():
    """Whatever the sign and size of what batch norm multiplies by."""
    torch.manual_seed(0)
    weight = torch.randn(8, 4, 3, 3)
    scale = torch.tensor([-3.0, 2.0, -0.01, 100.0, 1.0, -1.0, 0.0, 0.3])
    rest = (None, torch.randn(8), torch.rand(8) + 0.1, 1e-5, scale, torch.randn(8))

    def folded(values):
        return fuse_conv_bn_weights(values, *rest)[0]

    torch.testing.assert_close(
        folded(rounded_weight(weight)), rounded_weight(folded(weight)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(("low", "high"), [(-1.3, 4.2), (0.0, 1.0), (-2.0, 0.0), (0.0, 0.0)])
def test_values_have_one_range_and_keep_zero(low, high):
    values = torch.linspace(-6, 6, 1001)
    found = rounded(values, torch.tensor(low), torch.tensor(high))
    if high > low:
        np.testing.assert_allclose(found, by_hand(values, low, high), atol=1e-5)
    assert len(found.unique()) <= 256
    assert rounded(torch.zeros(1), torch.tensor(low), torch.tensor(high)) == 0


def test_channels_of_a_map_can_have_their_own():
    values = torch.randn(2, 3, 4, 5)
    low, high = torch.tensor([-1.2, -0.1, -5.0]), torch.tensor([1.0, 0.2, 4.0])
    ends = (one.view(-1, 1, 1).numpy() for one in (low, high))
    np.testing.assert_allclose(rounded(values, low, high), by_hand(values, *ends), atol=1e-5)


def test_gradients_pass_but_not_where_values_are_cut_off():
    values = torch.tensor([-3.0, -0.5, 0.123, 0.9, 7.0], requires_grad=True)
    rounded(values, torch.tensor(-1.0), torch.tensor(1.0)).sum().backward()
    assert values.grad.tolist() == [0, 1, 1, 1, 0]
    weight = torch.randn(3, 4, requires_grad=True)
    rounded_weight(weight).sum().backward()
    assert torch.equal(weight.grad, torch.ones(3, 4))


def new(name):
    torch.manual_seed(0)
    return create_model(name, num_classes=3)


def tensors(said):
    return [said] if isinstance(said, torch.Tensor) else list(said)


@pytest.mark.parametrize("name", MODELS)
def test_a_network_rounds_in_all_its_layers_and_is_left_as_it_was(name):
    model = new(name).train()
    rounding = Rounding(model)
    layers = [one for one in model.modules() if isinstance(one, nn.Conv2d | nn.Linear)]
    assert sum(one.taken for one in points(model).values()) == len(layers)
    before, keys = copy.deepcopy(model), list(model.state_dict())
    images = torch.rand(2, 3, 64, 64)
    with rounding.around(model):
        said = tensors(model(images))
        assert list(model.state_dict()) == keys
    sum(one.square().mean() for one in said).backward()
    reached = [one.weight.grad is not None for one in layers]
    assert all(reached)
    assert all(
        torch.equal(one, other)
        for one, other in zip(model.parameters(), before.parameters(), strict=True)
    )
    moved = [float(high) for key, high in rounding.named_buffers() if high.ndim == 0]
    assert any(moved)
    model.eval(), before.load_state_dict(model.state_dict()), before.eval()
    with torch.inference_mode():
        plain, also = tensors(model(images)), tensors(before(images))
        assert all(map(torch.equal, plain, also))  # nothing is left behind
        rounding.eval()
        with rounding.around(model):
            assert not torch.equal(tensors(model(images))[0], plain[0])


def test_an_error_within_leaves_the_network_as_it_was():
    model = new("mobilevit_xxs")
    with pytest.raises(ValueError, match="images must be"), Rounding(model).around(model):
        model(torch.rand(1, 4, 32, 32))
    assert not any("weight" in vars(one) for one in model.modules())
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())


def test_ranges_follow_training_and_stand_still_in_validation():
    model = new("mobilevit_xxs").train()
    rounding = Rounding(model).train()
    name = "backbone/stem/conv/taken/high"
    with rounding.around(model), torch.no_grad():
        model(torch.full((2, 3, 32, 32), 0.5))
        assert float(rounding.get_buffer(name)) == 0.5  # the first batch's, as it is
        model(torch.ones(2, 3, 32, 48))  # another size, too
        assert float(rounding.get_buffer(name)) == pytest.approx(0.5 + 0.01 * 0.5)
        still = digest(rounding.state_dict())
        model.eval(), rounding.eval()
        model(torch.full((2, 3, 64, 64), 9.0))
        assert digest(rounding.state_dict()) == still


def test_channels_that_exports_even_out_have_their_own_ranges():
    model = new("mobilevit_xxs")
    per_channel = {name for name, one in points(model).items() if one.channels}
    blocks = [n for n, one in model.named_modules() if isinstance(one, InvertedResidual)]
    expected = {f"{n}.{end}" for n in blocks for end in ("expand.given", "depthwise.conv.taken")}
    assert per_channel == expected


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
        rounding = Rounding(model).train()
        with torch.no_grad(), rounding.around(model):
            return float((model(x) - target).square().mean() / target.var())

    def tuned(*, aware):
        model = copy.deepcopy(trained)
        rounding = Rounding(model).train()
        optimiser = torch.optim.Adam(model.parameters(), lr=0.003)
        for _ in range(200):
            optimiser.zero_grad()
            if aware:
                with rounding.around(model):
                    loss = F.mse_loss(model(x), target)
            else:
                loss = F.mse_loss(model(x), target)
            loss.backward()
            optimiser.step()
        return error(model)

    before, plain, aware = error(trained), tuned(aware=False), tuned(aware=True)
    assert before > 0.1
    assert plain > 0.5 * before
    assert aware < 0.3 * before


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two classes of colours."""
    root = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for name, colour in {"blue": (20, 40, 220), "red": (220, 30, 20)}.items():
        (root / name).mkdir()
        for number in range(15):
            values = np.clip(np.array(colour) + draw.normal(0, 40, (36, 40, 3)), 0, 255)
            Image.fromarray(values.astype(np.uint8)).save(root / name / f"{number:02}.png")
    return root


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A classifier to begin with."""
    torch.manual_seed(0)
    return str(
        save(create_model("mobilevit_xxs", num_classes=2), tmp_path_factory.mktemp("s") / "m")
    )


def run(images, out, start, **options):
    """Seconds long; of several sizes."""
    defaults = {
        "epochs": 2,
        "size": 32,
        "batch_size": 6,
        "sampler": SamplerOptions(min_size=32, max_size=48, multiple=16),
        "optim": OptimOptions(lr=0.003),
        "threads": 1,
        "quantize_aware": True,
        "weights": start,
        "data": DataOptions(root=str(images), workers=0),
    }
    return train(out=str(out), **{**defaults, **options})


@pytest.fixture(scope="module")
def whole(images, start, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    return run(images, out, start), out


def test_the_model_folder_is_that_of_a_float_run(whole, images, start, tmp_path, capsys):
    out = whole[1]
    run(images, tmp_path / "run", start, epochs=1, quantize_aware=False)
    assert "8 bits" not in capsys.readouterr().out
    ours, theirs = (
        load_file(one / "model" / "model.safetensors") for one in (out, tmp_path / "run")
    )
    assert {key: one.shape for key, one in ours.items()} == {
        key: one.shape for key, one in theirs.items()
    }
    config = load(out / "model").config
    assert config.source.endswith("rounded to 8 bits in training and validation")
    assert "8 bits" in (out / "report.html").read_text()
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    for kind in ("state_dict", "current_model_state"):  # averaged, and not
        assert any(key.startswith("rounding.") for key in state[kind])


def test_a_resumed_run_comes_to_the_same_end(whole, images, start, tmp_path, monkeypatch):
    from mobilevit.training import checkpoints

    saved = checkpoints.Checkpoints.on_train_batch_end

    def stop(self, trainer, *arguments, **options):
        if trainer.global_step == 6:
            self._asked = 2
        saved(self, trainer, *arguments, **options)

    monkeypatch.setattr(checkpoints.Checkpoints, "on_train_batch_end", stop)
    with pytest.raises(Interrupted):
        run(images, tmp_path / "run", start)
    monkeypatch.undo()
    run(images, tmp_path / "run", start, resume=True)
    states = [
        torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
        for out in (whole[1], tmp_path / "run")
    ]
    for kind in ("state_dict", "current_model_state"):
        assert digest(states[0][kind]) == digest(states[1][kind])


def test_a_step_without_a_finite_gradient_moves_no_range(images, start, tmp_path, monkeypatch):
    from mobilevit.training import module

    clip = module.TaskTraining.configure_gradient_clipping
    seen = []

    def spoil(self, optimizer, *arguments, **options):
        before = digest(self.rounding.state_dict())
        if self.trainer.global_step == 2:
            next(self.model.parameters()).grad.fill_(float("nan"))
        clip(self, optimizer, *arguments, **options)
        seen.append((before, digest(self.rounding.state_dict())))

    monkeypatch.setattr(module.TaskTraining, "configure_gradient_clipping", spoil)
    run(images, tmp_path / "run", start, epochs=1)
    changed = [before != after for before, after in seen]
    assert changed[:2] == [False, False] and changed[2]
    assert seen[2][1] == seen[1][1]  # as after the step ahead of it


def test_mixed_precision_and_a_frozen_backbone(images, start, tmp_path):
    run(images, tmp_path / "run", start, epochs=1, precision="bf16", freeze_backbone=True, ema=0)
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    stem = state["state_dict"]["rounding.backbone/stem/conv/taken/high"]
    assert 0 < float(stem) <= 1  # frozen layers round too


def test_it_needs_weights(images, tmp_path, capsys):
    with pytest.raises(TrainingError, match="give it as weights"):
        run(images, tmp_path / "run", None, model="mobilevit_xxs")
    words = ["train", "--data.root", str(images), "--out", str(tmp_path / "run")]
    assert main([*words, "--quantize_aware", "true"]) == 1
    assert "give it as weights" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


SMALL = {"epochs": 1, "size": 64, "batch_size": 4, "sampler": SamplerOptions(mode="standard")}


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
        masks=SegmentationAugment(scale=(0.9, 1.2)),
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
