"""Learning rates, parameter groups and the moving average."""

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from mobilevit.data.options import DataOptions
from mobilevit.data.sampler import MultiScaleSchedule, Step
from mobilevit.models.registry import build
from mobilevit.training.module import TrainingModule
from mobilevit.training.optim import averaged, optimizer_of, parameter_groups, rate_factor
from mobilevit.training.options import OptimOptions, TrainOptions
from mobilevit.training.trainer import quiet_lightning


def test_warm_up_then_cosine_per_step():
    factor = rate_factor(1000, OptimOptions())
    assert factor(0) == pytest.approx(0.1)
    assert factor(25) == pytest.approx(0.55)
    assert factor(50) == pytest.approx(1.0)
    assert factor(525) == pytest.approx(0.55, abs=0.01)
    assert factor(999) == pytest.approx(0.1)
    assert factor(2000) == pytest.approx(0.1)  # never rises again


def test_warm_up_is_at_most_the_authors():
    factor = rate_factor(375_000, OptimOptions())
    assert factor(2999) < 1 <= factor(3000)


def test_a_run_of_one_step_has_a_rate():
    assert 0 < rate_factor(1, OptimOptions())(0) <= 1


def test_heads_rate_and_what_is_decayed():
    model = build("mobilevit_xxs", num_classes=3)
    everything = parameter_groups(model, OptimOptions(lr=0.1, head_lr=10.0))
    assert [(group["lr"], group["weight_decay"]) for group in everything] == [
        (0.1, 0.01),
        (1.0, 0.01),
    ]
    spared = parameter_groups(model, OptimOptions(lr=0.1, decay_norms=False))
    by_decay = {0.0: 0, 0.01: 0}
    for group in spared:
        for parameter in group["params"]:
            assert (parameter.ndim > 1) == (group["weight_decay"] == 0.01)
            by_decay[group["weight_decay"]] += parameter.numel()
    assert sum(by_decay.values()) == sum(p.numel() for p in model.parameters())
    model.backbone.requires_grad_(False)
    left = parameter_groups(model, OptimOptions(lr=0.1))
    assert sum(p.numel() for group in left for p in group["params"]) < 40_000


def test_a_fixed_rate():
    factor = rate_factor(1000, OptimOptions(final_lr=1, warmup=0))
    assert {factor(step) for step in range(1000)} == {1.0}


@pytest.mark.parametrize("scaled", [False, True])
def test_sgd_is_torchs_written_out(scaled):
    """Velocity v = m v + g + decay w, then w = w - lr v; three steps, in both of its forms."""
    options = OptimOptions(
        name="sgd", lr=0.1, momentum=0.8, weight_decay=0.03, decay_norms=False, head_lr=4.0
    )
    torch.manual_seed(0)
    model = build("mobilevit_xxs", num_classes=3).double()
    optimizer = optimizer_of(model, options, scaled=scaled)
    assert optimizer.defaults["fused"] is not scaled
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    velocities = {name: torch.zeros_like(value) for name, value in weights.items()}
    for _ in range(3):
        for value in model.parameters():
            value.grad = torch.randn_like(value)
        optimizer.step()
        for name, value in model.named_parameters():
            decay = 0.03 if value.ndim > 1 else 0.0
            rate = 0.1 * (4.0 if name.startswith("head.") else 1.0)
            gradient = value.grad + decay * weights[name]
            velocities[name] = 0.8 * velocities[name] + gradient
            weights[name] = weights[name] - rate * velocities[name]
            torch.testing.assert_close(value.detach(), weights[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_scaled_loss_that_overflows_changes_nothing(name, clip):
    """As in float16: unscaled first, then gradients that are not finite are dropped."""
    model = nn.Linear(3, 2)
    model.head_modules = ()
    optimizer = optimizer_of(model, OptimOptions(name=name, lr=0.1, clip=clip), scaled=True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(model(torch.full((1, 3), torch.inf)).sum()).backward()
    assert not getattr(optimizer, "_step_supports_amp_scaling", False)  # or nobody unscales
    scaler.unscale_(optimizer)
    model.zero_grad()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 1.0
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def ema_of(model, decay=0.9995):
    return AveragedModel(model, multi_avg_fn=averaged(decay), use_buffers=True)


def test_constant_weights_are_averaged_exactly():  # A43
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5))
    ema = ema_of(model)
    for step in range(1, 1001):
        model[1].num_batches_tracked += 1
        ema.update_parameters(model)
        if step in (1, 10, 1000):
            for own, other in zip(
                ema.module.state_dict().values(), model.state_dict().values(), strict=True
            ):
                assert torch.equal(own, other)


def test_the_average_follows_its_decay():
    model = nn.Linear(1, 1, bias=False)
    ema = ema_of(model, decay=0.9)
    expected = None
    for step in range(200):
        nn.init.constant_(model.weight, float(step % 7))
        ema.update_parameters(model)
        decay = min(0.9, (1 + step) / (10 + step))
        value = float(step % 7)
        expected = value if expected is None else decay * expected + (1 - decay) * value
        assert float(ema.module.weight.detach()) == pytest.approx(expected, rel=1e-5, abs=1e-6)


class Weight(nn.Module):
    """One number, whose gradient is that of the mean of a batch."""

    head_modules = ()

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))


class MeanLoss(nn.Module):
    def training_loss(self, model, batch):
        return model.weight * batch[0].mean()

    def reset(self, stage):
        pass

    def figures(self, stage):
        return {}


class Lists(LightningDataModule):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def train_dataloader(self):
        return DataLoader([(batch,) for batch in self.batches], batch_size=None)


@pytest.mark.filterwarnings("ignore:.*no `val_dataloader`")
@pytest.mark.parametrize(
    ("values", "accumulate", "weights"),
    [
        ([[1, 1], [1, 1], [1, 1]], 2, [0, -1, -2]),
        ([[1, 1], [1, 1], [1, 1]], 1, [0, -1, -2, -3]),
        ([[3, 3, 3], [7], [2, 2]], 2, [0, -4, -6]),  # (3 + 3 + 3 + 7) / 4, then 2
        ([[3, 3], [7, 7], [2]], 3, [0, -22 / 5]),
    ],
)
def test_accumulated_batches_weigh_by_their_images(
    tmp_path, monkeypatch, values, accumulate, weights
):
    """Also in the last step of an epoch, which may have fewer batches."""
    batches = [torch.tensor(one, dtype=torch.float32) for one in values]
    steps = [(32, 32, len(batch)) for batch in batches]
    schedule = MultiScaleSchedule(samples=sum(map(len, batches)), sizes=(32,))
    monkeypatch.setattr(
        MultiScaleSchedule, "epoch", lambda self, epoch: [Step(*step) for step in steps]
    )
    model, seen = Weight(), [0.0]
    module = TrainingModule(
        model,
        MeanLoss(),
        TrainOptions(data=DataOptions(root="none"), out="none"),
        optim=OptimOptions(name="sgd", lr=1, momentum=0, final_lr=1, warmup=0, weight_decay=0),
        steps=len(weights),
        schedule=schedule,
    )
    monkeypatch.setattr(module, "on_train_batch_end", lambda *_: seen.append(model.weight.item()))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    with quiet_lightning():
        trainer.fit(module, datamodule=Lists(batches))
    assert [seen[0], *(value for value in seen[1:] if value)] == pytest.approx(weights)
