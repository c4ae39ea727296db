"""The compact residual network: shapes, and the multiply-adds its docstring states."""

import pytest

from eex.models.network import feature_shapes, make
from eex.models.resnet import resnet


def test_resnet_shapes():
    shapes = feature_shapes(resnet(width=16), (3, 32, 32))
    assert shapes == [(8, 32, 32), *[(16, 16, 16)] * 2, *[(32, 8, 8)] * 2, *[(64, 4, 4)] * 2]
    with pytest.raises(ValueError, match="width must be a positive multiple of 8, got 12"):
        resnet(width=12)


def test_resnet_cost():
    net = make("resnet", "ab", after=range(6), structure="pool_fc")
    in_millions = [round(m / 1e6, 1) for m in net.costs().stage_macs]
    assert in_millions == [0.9, 4.7, 9.4, 18.9, 18.9, 18.9, 18.9]
