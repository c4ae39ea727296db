"""What lies between scene and sensor, against scipy and plain counting."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from eex.stream.frames.pixel_draws import uniform
from eex.stream.frames.scene import AIRLIGHT, ROTATION, STREAK, dirt, fog, occlusion, rain, rotation


def some_images(count=3, height=12, width=17, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("degrees", [1.0, 20.0, 45.0])
def test_rotation_is_scipys(degrees):
    images, frame = some_images(6), torch.arange(6)
    turned = rotation(images, torch.full((6,), degrees, dtype=torch.float64), frame, seed=3)
    left = uniform(frame, 1, 3, ROTATION)[:, 0] < 0.5
    assert len(set(left.tolist())) == 2
    y, x = np.mgrid[:12, :17].astype(float) - np.array([5.5, 8.0])[:, None, None]
    for mine, image, to_left in zip(turned, images.numpy(), left.tolist(), strict=True):
        a = np.radians(-degrees if to_left else degrees)
        at = [np.cos(a) * y - np.sin(a) * x + 5.5, np.sin(a) * y + np.cos(a) * x + 8]
        expected = np.stack([map_coordinates(channel, at, order=1, mode="mirror") for channel in image])
        np.testing.assert_allclose(mine.numpy(), expected, atol=1e-5)


def test_fog_lets_through_what_beer_and_lambert_say():
    black, white = torch.zeros(300, 1, 16, 16), torch.ones(300, 1, 16, 16)
    depth, frame = torch.full((300,), 1.5, dtype=torch.float64), torch.arange(300)
    through = fog(white, depth, frame) - fog(black, depth, frame)
    assert through.min().item() >= np.exp(-1.5 * 1.5) - 1e-6
    assert through.max().item() <= np.exp(-1.5 * 0.5) + 1e-6
    corner = through[:, 0, 0, 0].numpy()
    assert np.log(corner).mean() == pytest.approx(-1.5, abs=0.08)  # where nothing is interpolated
    torch.testing.assert_close(fog(black, depth, frame), AIRLIGHT * (1 - through))


def test_rain_falls_as_thick_as_it_is_said():
    black, frame = torch.zeros(50, 3, 60, 60), torch.arange(50)
    wet = rain(black, torch.full((50,), 1.0), frame)
    assert torch.equal(wet[:, 0], wet[:, 1])
    assert wet.max().item() <= STREAK + 1e-6
    # a streak of ten pixels' length adds ten pixels' brightness, or a little more: it is spread over two columns
    assert wet[:, 0].sum(dim=(1, 2)).mean().item() / STREAK == pytest.approx(60 * 60 / 1000 * 10, rel=0.45)
    columns = (wet[:, 0] > 0).float().sum(dim=1).max(dim=1).values
    assert (columns >= 8).float().mean() > 0.8  # it falls, and does not drift sideways


@pytest.mark.parametrize("percent", [4.0, 25.0, 90.0])
def test_occlusion_covers_its_share(percent):
    images = some_images(40, 40, 60)
    hidden = occlusion(images, torch.full((40,), percent), torch.arange(40), seed=1)
    covered = (hidden == 0.5).all(dim=1)
    assert covered.float().mean().item() == pytest.approx(percent / 100, abs=0.02)
    rows, columns = covered.any(dim=2).sum(dim=1), covered.any(dim=1).sum(dim=1)
    np.testing.assert_array_equal(rows * columns, covered.sum(dim=(1, 2)))  # a rectangle, whole
    assert len({tuple(np.argwhere(c.numpy())[0]) for c in covered}) > (1 if percent > 80 else 10)
    rest = ~covered[:, None].expand_as(images)
    assert torch.equal(hidden[rest], images[rest])


def test_dirt_darkens_its_share():
    white = torch.ones(60, 1, 64, 64)
    dirty = dirt(white, torch.full((60,), 10.0), torch.arange(60))
    share = (dirty < 1).float().mean().item()
    assert 0.05 < share < 0.105  # some spots overlap, some lie beyond the edge
    assert dirty.min().item() == pytest.approx(0.1)
