"""The order of samples in shards: each of them once, on any number of ranks, from any step on."""

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

from mobilevit.data.errors import DataError
from mobilevit.data.sampler import MultiScaleBatchSampler, MultiScaleSchedule
from mobilevit.data.shards.order import ShardOrder


def sizes_of(order: ShardOrder, epoch: int) -> list[int]:
    schedule = MultiScaleSchedule(
        samples=len(order), sizes=(32, 48), base_size=32, base_batch=7, seed=1
    )
    return [step.batch_size for step in schedule.epoch(epoch)]


def check_distance(order: ShardOrder, sizes: list[int], batches: list[list[int]]) -> None:
    """No batch holds a sample that is further ahead in its stream than the pool is large."""
    unpooled = ShardOrder(
        order.counts, seed=1, rank=order.rank, world_size=order.world_size, pool=0
    )
    unpooled.set_epoch(order.epoch)
    nearest = list(unpooled.deal(sizes))
    for stream in range(order.streams):
        sequence = list(itertools.chain(*nearest[stream :: order.streams]))
        taken = 0
        for batch in batches[stream :: order.streams]:
            taken += len(batch)
            # The position in `sequence` is exact but for the order within one batch.
            ahead = sequence[taken + order.pool + max(sizes) :]
            assert not Counter(batch) - Counter(sequence[: len(sequence) - len(ahead)])


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
        skip = data.draw(st.integers(0, len(sizes)))
        rest = list(order.deal(sizes, skip))
        assert rest == batches[skip:]
        if shuffle:
            check_distance(order, sizes, batches)
    assert len(steps) == 1
    assert set(seen) == set(range(sum(counts)))
    assert 0 <= len(seen) - sum(counts) < world


def test_every_epoch_has_another_order_and_each_stream_few_shards() -> None:
    order = ShardOrder([50] * 24, pool=240, sequential=True)
    assert order.streams == 12
    sizes = [10] * 120
    first = list(order.deal(sizes))
    assert list(order.deal(sizes)) == first
    order.set_epoch(1)
    assert list(order.deal(sizes)) != first
    shards = {
        stream: Counter(index // 50 for batch in first[stream::12] for index in batch)
        for stream in range(12)
    }
    assert all(len(counter) == 2 for counter in shards.values())
    assert len(set().union(*shards.values())) == 24
    together = sum(np.diff(batch).tolist().count(1) for batch in map(list, first))
    assert together < 100  # of 1080 neighbours: shuffled within a stream's pool


def test_fewer_shards_than_processes_or_workers(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DataError, match=r"fewer shards \(3\) than processes \(4\)"):
        ShardOrder([9, 9, 9], world_size=4, sequential=True)
    order = ShardOrder([9] * 10, world_size=2, sequential=True)
    assert (order.workers(1), order.workers(2), order.workers(8)) == (1, 2, 4)
    assert (
        "4 of 8 workers are used: the 10 shards of 2 processes are read 4 at a time" in caplog.text
    )
    assert ShardOrder([9, 9, 9], world_size=4).workers(8) == 8  # files: any worker reads any


RANKS = """
import sys
import torch.distributed as dist
from mobilevit.data.open import open_splits
from mobilevit.data.options import DataOptions
from mobilevit.data.splits import LabelSamples
from mobilevit.data.loader import EpochLoader
from mobilevit.data.sampler import MultiScaleBatchSampler, MultiScaleSchedule

class Numbers:
    def __init__(self, samples):
        self.samples = samples
    def __len__(self):
        return len(self.samples.labels)
    def __getitems__(self, keys):
        return [(k.sample, k.height, len(self.samples.source(k.sample))) for k in keys]

if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    samples = open_splits(LabelSamples, DataOptions(root=f"file://{sys.argv[1]}")).train
    order = samples.order(seed=0, pool=9, rank=rank, world_size=world)
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

    from mobilevit.data.open import open_splits
    from mobilevit.data.options import DataOptions
    from mobilevit.data.shards.write import write_shards
    from mobilevit.data.splits import LabelSamples

    for number in range(40):
        file = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(file)
    data = DataOptions(root=str(tmp_path / "images"))
    write_shards(open_splits(LabelSamples, data), tmp_path / "shards", size=1e6, shards=5)
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
    with pytest.raises(ValueError, match="21 samples for a schedule of 20"):
        MultiScaleBatchSampler(
            order, MultiScaleSchedule(samples=20, sizes=(32,), base_size=32, base_batch=4)
        )
