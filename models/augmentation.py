"""Augmentation of training images: shifts, mirroring, and squares painted grey."""

import torch
from torch import Tensor


def augment(images: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Shift each image by up to `shift` pixels (mirrored at the border) and mirror half of them: (B, C, H, W)."""
    count, _, height, width = images.shape
    rows = torch.arange(height).expand(count, height)
    columns = torch.arange(width).expand(count, width)
    if flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    if shift:
        rows = _reflect(rows + torch.randint(-shift, shift + 1, (count, 1), generator=generator), height)
        columns = _reflect(columns + torch.randint(-shift, shift + 1, (count, 1), generator=generator), width)
    frame, rows, columns = (index.to(images.device) for index in (torch.arange(count)[:, None, None], rows, columns))
    # index channels last: one gather of whole pixels
    return images.permute(0, 2, 3, 1)[frame, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cut_out(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Paint a square of each image grey, (B, C, H, W) in [0, 1]: its middle drawn anywhere, what sticks out cut off."""
    if not side:
        return images
    count, _, height, width = images.shape
    top = torch.randint(0, height, (count, 1), generator=generator) - side // 2
    left = torch.randint(0, width, (count, 1), generator=generator) - side // 2
    rows, columns = torch.arange(height), torch.arange(width)
    inside = ((rows >= top) & (rows < top + side))[:, :, None] & ((columns >= left) & (columns < left + side))[:, None]
    return images.masked_fill(inside[:, None].to(images.device), 0.5)


def _reflect(index: Tensor, size: int) -> Tensor:
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)
