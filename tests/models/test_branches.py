"""Side branches: shapes, known placements, errors."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from eex.models.branches import BRANCHES, GlobalPool, ShrinkTo, make_branch, place_by_share, place_uniformly


@pytest.mark.parametrize("structure", BRANCHES)
@pytest.mark.parametrize("shape", [(6, 32, 32), (6, 20, 13), (6, 1, 1), (6,)])
def test_every_structure_takes_every_shape(structure, shape):
    branch = make_branch(structure, shape, 5)
    assert branch(torch.rand(3, *shape)).shape == (3, 5)


def test_the_squeezed_branch_costs_a_small_part_of_the_other_normalised_one():
    def macs(structure):
        with FlopCounterMode(display=False) as counter:
            make_branch(structure, (112, 14, 14), 2).eval()(torch.rand(1, 112, 14, 14))
        return counter.get_total_flops() // 2

    # a 1x1 convolution on 7x7 cells, a 3x3 one on 4x4, a linear layer
    assert macs("squeeze_conv") == 112 * 64 * 49 + 9 * 64 * 128 * 16 + 128 * 2
    assert macs("squeeze_conv") < macs("norm_conv") / 8


def test_unknown_structure():
    with pytest.raises(ValueError, match="unknown branch structure 'tree', expected one of pool_fc"):
        make_branch("tree", (6, 4, 4), 5)


def test_shrink_is_a_mean_over_cells():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert ShrinkTo(2)(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert ShrinkTo(4)(x) is x
    assert ShrinkTo(8)(torch.rand(1, 1, 20, 5)).shape == (1, 1, 8, 5)
    assert GlobalPool()(x).tolist() == [[7.5]]


@pytest.mark.parametrize(
    ("costs", "shares", "places"),
    [
        ([10, 10, 20, 40, 20], [0.2, 0.4], [1, 2]),
        ([10, 10, 20, 40, 20], [0.1, 0.8], [0, 3]),
        ([25, 25, 25, 25], [0.3, 0.35], [0, 1]),  # both nearest to block 0: the second takes the next
        ([1, 1, 98], [0.8, 0.9], [0, 1]),  # room is left for each that follows and for the end
        ([97, 1, 1, 1], [0.1, 0.2, 0.3], [0, 1, 2]),
        ([5, 5], [], []),
    ],
)
def test_places_by_share(costs, shares, places):
    assert place_by_share(costs, shares) == places


@pytest.mark.parametrize(("blocks", "count", "places"), [(8, 3, [1, 3, 5]), (4, 3, [0, 1, 2]), (10, 1, [4])])
def test_places_uniformly(blocks, count, places):
    assert place_uniformly(blocks, count) == places


@pytest.mark.parametrize("shares", [[0.0], [1.0], [0.4, 0.2], [0.3, 0.3]])
def test_shares_must_rise(shares):
    with pytest.raises(ValueError, match="shares must rise"):
        place_by_share([1, 1, 1, 1], shares)


def test_too_few_blocks():
    with pytest.raises(ValueError, match="3 side branches need at least 4 blocks, got 3"):
        place_by_share([1, 1, 1], [0.2, 0.4, 0.6])
