"""The multi-scale schedule and its samplers."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mobilevit.data.sampler import (
    EpochOrder,
    MultiScaleBatchSampler,
    MultiScaleSchedule,
    SampleKey,
    scales,
)

PAPER = (160, 192, 256, 288, 320)


def test_the_papers_scales_are_rounded_to_32_and_hold_the_base():  # A19
    assert scales(160, 320, 256) == [*PAPER]
    assert scales(96, 160, 128, multiple=16) == [96, 112, 128, 144, 160]
    assert scales(80, 160, 128) == [96, 128, 160]  # halves go up
    with pytest.raises(ValueError, match="do not include the base size 128"):
        scales(160, 320, 128)


@pytest.mark.parametrize(
    ("rule", "multiple", "batches"),
    [
        ("area", 1, [327, 227, 128, 101, 81]),  # A19: the authors' later code
        ("area", 8, [328, 224, 128, 104, 80]),  # between the two
        ("floor", 8, [328, 224, 128, 128, 128]),  # the code of 2021 on 8 GPUs
        ("max", 1, [512, 355, 200, 158, 128]),  # the paper's text
    ],
)
def test_published_batch_rules(rule, multiple, batches):
    schedule = MultiScaleSchedule(samples=9, sizes=PAPER, batch_rule=rule, batch_multiple=multiple)
    assert [schedule.batch_size(size) for size in PAPER] == batches


@given(
    samples=st.integers(1, 3000),
    epoch=st.integers(0, 5),
    seed=st.integers(0, 3),
    rule=st.sampled_from(["area", "floor", "max"]),
    world=st.integers(1, 4),
)
def test_every_sample_is_seen_once_an_epoch_and_ranks_agree(samples, epoch, seed, rule, world):
    seen = []
    plans = []
    for rank in range(world):
        order = EpochOrder(samples, seed=seed, rank=rank, world_size=world)
        schedule = MultiScaleSchedule(samples=len(order), sizes=PAPER, batch_rule=rule, seed=seed)
        batches = MultiScaleBatchSampler(order, schedule)
        order.set_epoch(epoch)
        listed = list(batches)
        random.random(), torch.rand(1)  # what else draws numbers in this process changes nothing
        assert list(batches) == listed
        assert len(listed) == len(batches)
        assert all(batch for batch in listed)
        assert all(len({(key.height, key.width) for key in batch}) == 1 for batch in listed)
        plans.append([(batch[0].height, batch[0].width, len(batch)) for batch in listed])
        seen += [key.sample for batch in listed for key in batch]
    assert all(plan == plans[0] for plan in plans)
    assert set(seen) == set(range(samples))
    assert len(seen) - samples < world  # repeats come from padding alone


def test_batches_follow_their_sizes_until_the_last_one():
    schedule = MultiScaleSchedule(samples=10_000, sizes=PAPER)
    *full, last = schedule.epoch(3)
    assert all(step.batch_size == schedule.batch_size(step.height) for step in full)
    assert 1 < last.batch_size <= schedule.batch_size(last.height) + 1
    assert sum(step.batch_size for step in schedule.epoch(3)) == 10_000


def test_sizes_are_drawn_evenly_and_anew_each_epoch():
    schedule = MultiScaleSchedule(samples=500_000, sizes=PAPER)
    drawn = [step.height for step in schedule.epoch(0)]
    counts = np.array([drawn.count(size) for size in PAPER])
    assert counts.min() > 0.85 * counts.mean()
    assert drawn != [step.height for step in schedule.epoch(1)]


def test_few_samples_make_one_batch():  # A21
    schedule = MultiScaleSchedule(samples=3, sizes=(160,), base_batch=128)
    assert schedule.epoch(0) == [(160, 160, 3)]


@pytest.mark.parametrize("samples", [33, 65, 97])
def test_no_sample_is_left_alone(samples):  # A21: batch norm cannot learn from one
    schedule = MultiScaleSchedule(samples=samples, sizes=(64,), base_size=64, base_batch=32)
    assert [step.batch_size for step in schedule.epoch(0)][-1] == 33


def test_one_size_is_the_standard_sampler():
    schedule = MultiScaleSchedule(samples=100, sizes=(128,), base_size=128, base_batch=32)
    assert schedule.epoch(0) == [(128, 128, 32)] * 3 + [(128, 128, 4)]


def test_keys_carry_what_a_data_set_needs():
    order = EpochOrder(2, seed=1)
    order.set_epoch(4)
    schedule = MultiScaleSchedule(samples=2, sizes=(96,), base_size=96, base_batch=8)
    (batch,) = MultiScaleBatchSampler(order, schedule)
    assert sorted(batch) == [SampleKey(0, 96, 96, 4), SampleKey(1, 96, 96, 4)]


@pytest.mark.parametrize(
    "options",
    [{"samples": 0}, {"sizes": ()}, {"batch_rule": "none"}, {"base_batch": 0}, {"sizes": (0,)}],
)
def test_impossible_plans_are_refused(options):
    with pytest.raises(ValueError, match=r"batch|size|sample"):
        MultiScaleSchedule(**{"samples": 5, "sizes": PAPER, **options})


def test_an_order_of_another_length_is_refused():
    with pytest.raises(ValueError, match="5 samples for a schedule of 6"):
        MultiScaleBatchSampler(EpochOrder(5), MultiScaleSchedule(samples=6, sizes=PAPER))
