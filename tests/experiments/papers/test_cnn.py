"""The local-exit paper's network: shapes and costs, and workers that know it."""

import pytest

from eex.experiments.papers.cnn import cnn, register
from eex.models.network import feature_shapes, make


def test_cnn_shapes_and_cost():
    shapes = feature_shapes(cnn(width=4), (3, 32, 32))
    assert shapes == [*[(4, 32, 32)] * 2, *[(8, 16, 16)] * 2, *[(16, 8, 8)] * 2, *[(32, 4, 4)] * 3]
    assert feature_shapes(cnn(width=4, stride=2), (3, 32, 32))[-1] == (32, 2, 2)
    register()
    net = make("cnn", "ab", after=range(8), structure="pool_fc")
    in_millions = [round(m / 1e6, 1) for m in net.costs().stage_macs]
    assert in_millions == [39.5, 75.5, 56.6, 75.5, 56.6, 75.5, 56.6, 75.5, 75.5]
    with pytest.raises(ValueError, match="width and stride must be at least 1, got 16 and 0"):
        cnn(width=16, stride=0)
