"""AlexNet for 32x32 images: shapes, and its norm against torch's."""

import torch

from eex.models.alexnet import LocalNorm, alexnet
from eex.models.network import feature_shapes


def test_alexnet_shapes():
    shapes = feature_shapes(alexnet(), (3, 32, 32))
    assert shapes == [(32, 16, 16), (64, 8, 8), (96, 8, 8), (96, 8, 8), (64, 4, 4), (256,), (128,)]


def test_alexnets_norm_is_torchs():
    x = 30 * torch.randn(2, 5, 4, 3)
    expected = torch.nn.LocalResponseNorm(3, 5e-5, 0.75)(x)
    torch.testing.assert_close(LocalNorm()(x), expected)
    features_last = x.contiguous(memory_format=torch.channels_last)
    assert LocalNorm()(features_last).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(LocalNorm()(x[:, :1]), torch.nn.LocalResponseNorm(3, 5e-5, 0.75)(x[:, :1]))
