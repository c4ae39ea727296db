"""Shifts, mirroring and grey squares, by hand."""

import torch

from eex.models.augmentation import augment, cut_out


def test_augment_by_hand():
    row = torch.arange(6, dtype=torch.uint8).expand(200, 1, 6, 6)
    generator = torch.Generator().manual_seed(0)
    found = {tuple(image[0, 0].tolist()) for image in augment(row, 1, False, generator)}
    assert found == {(0, 1, 2, 3, 4, 5), (1, 0, 1, 2, 3, 4), (1, 2, 3, 4, 5, 4)}
    found = {tuple(image[0, 0].tolist()) for image in augment(row, 0, True, generator)}
    assert found == {(0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0)}
    assert torch.equal(augment(row, 0, False, generator), row)


def test_grey_squares_are_cut_off_at_the_border():
    images = torch.ones(200, 1, 5, 4)
    painted = cut_out(images, 3, torch.Generator().manual_seed(0))
    assert set(painted.unique().tolist()) == {0.5, 1.0}
    counts = (painted == 0.5).sum(dim=(1, 2, 3))
    assert counts.min() >= 2 * 2  # the middle lies in the image
    assert counts.max() == 3 * 3
    assert cut_out(images, 0, torch.Generator()) is images
