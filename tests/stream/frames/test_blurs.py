"""Blur by a lens and by motion, against scipy."""

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate, map_coordinates

from eex.stream.frames.blurs import defocus_blur, motion_blur
from eex.stream.frames.pixel_draws import uniform


def some_images(count=3, height=12, width=17, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("radius", [0.4, 1.0, 2.5, 6.0])
def test_defocus_is_a_disc(radius):
    images = some_images(2)
    reach, fine = int(np.ceil(radius)) + 1, 64
    at = (np.arange((2 * reach + 1) * fine) + 0.5) / fine - reach - 0.5
    inside = (at[:, None] ** 2 + at[None] ** 2 <= radius**2).astype(float)
    kernel = inside.reshape(2 * reach + 1, fine, 2 * reach + 1, fine).mean(axis=(1, 3))
    kernel /= kernel.sum()
    blurred = defocus_blur(images, torch.full((2,), radius, dtype=torch.float64))
    for mine, image in zip(blurred, images.numpy(), strict=True):
        expected = np.stack([correlate(channel, kernel, mode="mirror") for channel in image])
        np.testing.assert_allclose(mine.numpy(), expected, atol=0.02)


@pytest.mark.parametrize("length", [0.5, 3.0, 7.3])
def test_motion_is_the_mean_along_a_line(length):
    images, frame = some_images(4), torch.arange(4)
    blurred = motion_blur(images, torch.full((4,), length, dtype=torch.float64), frame, seed=5)
    y, x = np.mgrid[:12, :17].astype(float)
    for mine, image, turn in zip(blurred, images.numpy(), uniform(frame, 1, 5, 1)[:, 0].tolist(), strict=True):
        way = np.linspace(-length / 2, length / 2, max(1, int(np.ceil(2 * length))) + 1)
        angle = np.pi * turn
        seen = [
            [map_coordinates(c, [y + s * np.sin(angle), x + s * np.cos(angle)], order=1, mode="mirror") for c in image]
            for s in way
        ]
        np.testing.assert_allclose(mine.numpy(), np.mean(seen, axis=0), atol=1e-5)


def test_directions_are_all_over():
    turns = uniform(torch.arange(4000), 1, 0, 1)[:, 0]
    assert turns.min() >= 0
    assert turns.max() < 1
    np.testing.assert_allclose(np.histogram(turns, 8, (0, 1))[0], 500, atol=5 * 500**0.5)


def test_a_field_of_one_colour_stays():
    grey = torch.full((1, 3, 9, 9), 0.4)
    torch.testing.assert_close(defocus_blur(grey, torch.tensor([3.3])), grey)
    torch.testing.assert_close(motion_blur(grey, torch.tensor([8.0]), torch.tensor([1])), grey)
