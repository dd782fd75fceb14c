"""The order of samples in shards: all of them once, whoever reads, from any place on."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilevit.data.formats.folders import DataError
from mobilevit.data.sampler import Batch, MultiScaleBatchSampler, MultiScaleSchedule
from mobilevit.data.shards.order import ShardOrder


def sizes_of(order: ShardOrder, epoch: int) -> list[int]:
    schedule = MultiScaleSchedule(
        samples=len(order), sizes=(32, 48), base_size=32, base_batch=7, seed=1
    )
    return [step.batch_size for step in schedule.epoch(epoch)]


def follow(batches: list[Batch[int]], most: int) -> None:
    """Read as a worker does: each batch must find its samples, and none must be left over."""
    held: dict[int, set[int]] = {}
    for batch in batches:
        if batch.first:
            held[batch.lane] = set()
        lane = held[batch.lane]
        for begin, end in batch.runs:
            assert not lane & set(range(begin, end))
            lane |= set(range(begin, end))
        assert len(lane) <= most
        assert lane >= set(batch)
        lane -= set(batch)
    assert not any(held.values())


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=30).filter(lambda c: sum(c) > 4),
    world=st.integers(1, 4),
    pool=st.integers(0, 90),
    shuffle=st.booleans(),
    data=st.data(),
)
def test_ranks_share_all_samples(
    counts: list[int], world: int, pool: int, shuffle: bool, data: st.DataObject
) -> None:
    seen: list[int] = []
    steps = set()
    for rank in range(world):
        order = ShardOrder(counts, seed=1, rank=rank, world_size=world, pool=pool, shuffle=shuffle)
        order.set_epoch(2)
        sizes = sizes_of(order, 2)
        batches = list(order.deal(sizes))
        assert [len(batch) for batch in batches] == sizes
        steps.add(len(batches))
        seen += itertools.chain(*batches)
        most = pool // order.lanes + max(sizes)
        follow(batches, most)
        skip = data.draw(st.integers(0, len(sizes)))
        rest = list(order.deal(sizes, skip))
        assert rest == batches[skip:]
        follow(rest, most)
    assert len(steps) == 1
    assert set(seen) == set(range(sum(counts)))
    assert 0 <= len(seen) - sum(counts) < world


def test_every_epoch_has_another_order_and_each_lane_few_shards() -> None:
    order = ShardOrder([50] * 24, pool=240, in_a_row=True)
    assert order.lanes == 12
    sizes = [10] * 120
    first = list(order.deal(sizes))
    assert list(order.deal(sizes)) == first
    order.set_epoch(1)
    assert list(order.deal(sizes)) != first
    shards = {
        lane: Counter(index // 50 for batch in first[lane::12] for index in batch)
        for lane in range(12)
    }
    assert all(len(counter) == 2 for counter in shards.values())
    assert len(set().union(*shards.values())) == 24
    together = sum(np.diff(batch).tolist().count(1) for batch in map(list, first))
    assert together < 100  # of 1080 neighbours: shuffled within a lane's pool


def test_too_few_shards_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DataError, match=r"fewer shards \(3\) than processes \(4\)"):
        ShardOrder([9, 9, 9], world_size=4, in_a_row=True)
    order = ShardOrder([9] * 10, world_size=2, in_a_row=True)
    assert (order.workers(1), order.workers(2), order.workers(8)) == (1, 2, 4)
    assert "4 of 8 workers read: 10 shards for 2 processes are read 4 at a time" in caplog.text
    assert ShardOrder([9, 9, 9], world_size=4).workers(8) == 8  # files: any worker reads any


RANKS = """
import sys
import torch.distributed as dist
from mobilevit.data.shards.open import shard_splits
from mobilevit.data.loader import EpochLoader
from mobilevit.data.sampler import MultiScaleBatchSampler, MultiScaleSchedule
from mobilevit.data.shards.samples import order_of

class Numbers:
    def __init__(self, samples):
        self.samples = samples
    def __len__(self):
        return len(self.samples.labels)
    def __getitems__(self, keys):
        self.samples.read_ahead(keys)
        return [(k.sample, k.height, len(self.samples.source(k.sample))) for k in keys]

if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    samples = shard_splits(f"file://{sys.argv[1]}").train
    order = order_of(samples, len(samples.labels), seed=0, pool=9, rank=rank, world_size=world)
    schedule = MultiScaleSchedule(
        samples=len(order), sizes=(32, 64), base_size=32, base_batch=5
    )
    loader = EpochLoader(Numbers(samples), MultiScaleBatchSampler(order, schedule), workers=1)
    taken = list(loader)
    everyone = [None] * world
    dist.all_gather_object(everyone, taken)
    if rank == 0:
        steps = [[(batch[0][1], len(batch)) for batch in batches] for batches in everyone]
        assert steps[0] == steps[1], steps
        seen = [sample for batches in everyone for batch in batches for sample, *_ in batch]
        assert sorted(set(seen)) == list(range(len(samples.labels)))
        assert len(seen) == 2 * len(order)
        print("all samples once over", world, "ranks")
    dist.destroy_process_group()
"""


def test_two_ranks_under_torchrun(tmp_path: Path) -> None:
    """The same sizes at every step, disjoint samples, through a URL and a worker of each rank."""
    from PIL import Image

    from mobilevit.data.formats.folders import splits
    from mobilevit.data.shards.write import write_shards

    for number in range(40):
        file = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(file)
    write_shards(splits(tmp_path / "images"), tmp_path / "shards", size=1e6, shards=5)
    (tmp_path / "ranks.py").write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(tmp_path / "ranks.py"), str(tmp_path / "shards")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "all samples once over 2 ranks" in done.stdout


def test_the_sampler_deals_shards_out() -> None:
    order = ShardOrder([6, 7, 8], seed=3)
    schedule = MultiScaleSchedule(samples=21, sizes=(32, 64), base_size=32, base_batch=4)
    sampler = MultiScaleBatchSampler(order, schedule)
    batches = list(sampler)
    assert sorted(key.sample for batch in batches for key in batch) == list(range(21))
    assert [len(batch) for batch in batches] == [step.batch_size for step in schedule.epoch(0)]
    assert all(isinstance(batch, Batch) and batch.runs is not None for batch in batches)
    with pytest.raises(ValueError, match="21 samples for a schedule of 20"):
        MultiScaleBatchSampler(
            order, MultiScaleSchedule(samples=20, sizes=(32,), base_size=32, base_batch=4)
        )
