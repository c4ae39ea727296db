"""What a camera does to an image, against plain arithmetic."""

import numpy as np
import pytest
import torch

from eex.stream.frames.sensor import FULL_WELL, colour_cast, low_contrast, low_light
from eex.stream.frames.sources import load_all, open_source


def photographs(count=6):
    return torch.from_numpy(load_all(open_source("sample"))[0][:count]).float() / 255


@pytest.mark.parametrize("stops", [0.0, 2.0, 4.0])
def test_low_light_leaves_so_many_photons(stops):
    grey = torch.full((64, 3, 32, 32), 0.8)
    photons = low_light(grey, torch.full((64,), stops), torch.arange(64), seed=1).double() ** 2 * FULL_WELL
    expected = FULL_WELL * 0.8**2 / 2**stops
    assert photons.mean().item() == pytest.approx(expected, rel=0.01)
    assert photons.var().item() == pytest.approx(expected, rel=0.03)  # as Poisson's law has it


def test_low_contrast_keeps_the_mean():
    images = photographs()
    less = low_contrast(images, torch.full((len(images),), 60.0))
    np.testing.assert_allclose(less.mean(dim=(1, 2, 3)), images.mean(dim=(1, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(less.std(dim=(1, 2, 3)), 0.4 * images.std(dim=(1, 2, 3)), rtol=1e-5)


def test_a_colour_cast_moves_red_against_blue():
    grey = torch.full((200, 3, 4, 4), 0.3)
    cast = colour_cast(grey, torch.full((200,), 1.0), torch.arange(200), seed=2)
    assert torch.equal(cast[:, 1], grey[:, 1])
    light = (cast[:, :, 0, 0].double() / 0.3) ** 2
    gained = np.log2((light[:, 0] / light[:, 2]).numpy())
    np.testing.assert_allclose(np.abs(gained), 1, atol=1e-5)
    assert 60 < (gained > 0).sum() < 140  # to either side
    assert torch.equal(colour_cast(grey[:, :1], torch.full((200,), 1.0), torch.arange(200)), grey[:, :1])
