"""Convexified trajectories against their definition."""

import pytest
import torch

from ddfast.experts import TrajectoryStore
from ddfast.experts.convex import ConvexPaths, ConvexReader
from tests.conftest import normal, relative_error

EPOCHS, LAYERS = 6, [3, 5]


@pytest.fixture
def store(tmp_path):
    settings = {"dataset": "made", "network": "none", "keep_epochs": None, "snapshots": "float32"}
    settings = {name: value for name, value in settings.items() if name not in ("keep_epochs", "snapshots")}
    made = TrajectoryStore.create(tmp_path / "experts", settings, EPOCHS)
    for expert in range(2):
        made.add(expert, normal(EPOCHS + 1, 8, seed=expert).float().cumsum(0))
    return made


def by_definition(store, expert, epoch, first, last, middle, smoothing):
    """Layer by layer, three waypoints."""
    path = torch.stack([store.snapshot(expert, e) for e in range(EPOCHS + 1)]).double()
    near = path[max(first, middle - smoothing) : min(last, middle + smoothing) + 1]
    points = [path[first], near.mean(0), path[last]]
    result, offset = [], 0
    for size in LAYERS:
        layer = path[:, offset : offset + size]
        way = [float((layer[e] - layer[e - 1]).norm()) if e > first else 0.0 for e in range(first, last + 1)]
        total = torch.tensor(way).double().cumsum(0)
        whole = min(int(epoch), last - 1)
        gone = total[whole - first] + (epoch - whole) * (total[whole + 1 - first] - total[whole - first])
        half = total[middle - first]
        a, b, low, high = (0, 1, 0.0, half) if gone < half else (1, 2, half, total[-1])
        share = (gone - low) / (high - low)
        ends = [points[n][offset : offset + size] for n in (a, b)]
        result.append(ends[0] + share * (ends[1] - ends[0]))
        offset += size
    return torch.cat(result)


@pytest.mark.parametrize("epoch", [0.0, 0.3, 1.0, 2.7, 3.0, 4.9, 6.0])
@pytest.mark.parametrize("smoothing", [0, 1])
def test_a_path_is_straight_between_its_points_at_the_share_of_the_way(smoothing, epoch, store):
    paths = ConvexPaths(store, LAYERS, 0, 6, 3, smoothing)
    assert relative_error(paths.at(1, epoch), by_definition(store, 1, epoch, 0, 6, 3, smoothing)) < 1e-5
    inner = ConvexPaths(store, LAYERS, 1, 5, 3, smoothing)
    clamped = min(max(epoch, 1), 5)
    assert relative_error(inner.at(0, epoch), by_definition(store, 0, clamped, 1, 5, 3, smoothing)) < 1e-5


def test_two_waypoints_are_a_straight_line_and_all_are_the_path(store):
    line = ConvexPaths(store, LAYERS, 0, 6, 2)
    for epoch in (1.5, 4.2):
        at, first, last = line.at(0, epoch), store.snapshot(0, 0), store.snapshot(0, 6)
        for part in (slice(0, 3), slice(3, 8)):
            share = (at[part] - first[part]) / (last[part] - first[part])
            assert (share - share[0]).abs().max() < 1e-4 and 0 < share[0] < 1
    whole = ConvexPaths(store, LAYERS, 0, 6, 7, 0)
    for epoch in range(7):
        assert relative_error(whole.at(1, epoch), store.snapshot(1, epoch)) < 1e-6


def test_paths_are_kept_beside_the_experts_and_damaged_ones_made_again(store):
    paths = ConvexPaths(store, LAYERS, 0, 6)
    first = paths.at(0, 2.5)
    (file,) = store.path.glob("convex-*expert_0000*")
    read = TrajectoryStore.snapshot
    try:
        TrajectoryStore.snapshot = None  # not read again
        assert torch.equal(ConvexPaths(store, LAYERS, 0, 6).at(0, 2.5), first)
    finally:
        TrajectoryStore.snapshot = read
    file.write_bytes(file.read_bytes()[:-4])
    assert torch.equal(ConvexPaths(store, LAYERS, 0, 6).at(0, 2.5), first)


def test_starts_are_real_numbers_within_the_bounds_and_the_reader_goes_on(store):
    def reader():
        return ConvexReader(
            ConvexPaths(store, LAYERS, 0, 6), generator=torch.Generator().manual_seed(1), num_experts=2,
            start_epochs=lambda n: (1, 5), expert_epochs=2, segments=3, device=torch.device("cpu"),
        )  # fmt: skip

    one = reader()
    drawn = [one.next() for _ in range(20)]
    starts = [epoch for segments in drawn for epoch in segments.start_epochs]
    assert 1 <= min(starts) < 1.5 and 3.5 < max(starts) <= 4 and any(epoch % 1 for epoch in starts)
    assert {expert for segments in drawn for expert in segments.experts} == {0, 1}
    path = ConvexPaths(store, LAYERS, 0, 6)
    for row in range(3):
        expert, epoch = drawn[0].experts[row], drawn[0].start_epochs[row]
        assert torch.equal(drawn[0].target[row], path.at(expert, epoch + 2))
    two = reader()
    [two.next() for _ in range(4)]
    state = two.state()
    again = reader()
    again.load_state(state)
    assert again.next().start_epochs == drawn[4].start_epochs


def test_epochs_that_are_not_kept_are_refused(tmp_path):
    made = TrajectoryStore.create(tmp_path / "some", {"dataset": "made", "keep_epochs": [2, 4]}, EPOCHS)
    with pytest.raises(ValueError, match=r"convexified paths need 0 to 6"):
        ConvexPaths(made, LAYERS, 0, 6)
