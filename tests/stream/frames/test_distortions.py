"""Distortions against scipy, and against themselves in other batches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate1d

from eex.policies.core.schedule import KINDS, MAX_LEVEL
from eex.stream.frames.blurs import gaussian_blur, gaussian_kernel
from eex.stream.frames.distortions import DISTORTIONS, distort, random_distortion, random_mixture
from eex.stream.frames.pixel_draws import standard_normal
from eex.stream.frames.sensor import gaussian_noise

BLUR, NOISE = KINDS.index("gaussian_blur"), KINDS.index("gaussian_noise")


def some_images(count=3, height=12, width=17, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def slow_blur(image, sigma):
    """One image (C, H, W): a Gaussian at 2·⌈2σ⌉ + 1 pixels, mirrored edges, in float64."""
    radius = int(np.ceil(2 * sigma))
    at = np.arange(-radius, radius + 1)
    kernel = np.exp(-(at**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    image = np.asarray(image, dtype=float)
    return correlate1d(correlate1d(image, kernel, axis=1, mode="mirror"), kernel, axis=2, mode="mirror")


@pytest.mark.parametrize(("sigma", "taps"), [(0.5, 3), (1, 5), (1.2, 7), (2, 9), (3, 13), (20, 81)])
def test_kernel(sigma, taps):
    kernel = gaussian_kernel(sigma)
    assert len(kernel) == taps
    assert sum(kernel) == pytest.approx(1)
    assert kernel == kernel[::-1]
    assert kernel[taps // 2 + 1] / kernel[taps // 2] == pytest.approx(np.exp(-0.5 / sigma**2))


@pytest.mark.parametrize("sigma", [0.3, 1, 2, 4.7, 20])  # 20: wider than the image, mirrored more than once
@pytest.mark.parametrize("size", [(12, 17), (1, 5), (2, 2)])
def test_blur_is_scipys(sigma, size):
    images = some_images(2, *size)
    blurred = gaussian_blur(images, torch.full((2,), sigma, dtype=torch.float64))
    for mine, image in zip(blurred, images, strict=True):
        np.testing.assert_allclose(mine.numpy(), slow_blur(image, sigma), atol=1e-6)


def test_each_image_has_its_own_sigma():
    images = some_images(4)
    sigma = torch.tensor([0.0, 0.7, 2.0, 5.5], dtype=torch.float64)
    blurred = gaussian_blur(images, sigma)
    assert torch.equal(blurred[0], images[0])
    for i in (1, 2, 3):
        np.testing.assert_allclose(blurred[i].numpy(), slow_blur(images[i], float(sigma[i])), atol=1e-6)


def test_blur_stays_in_range():
    white = torch.ones(1, 3, 9, 9)
    for sigma in (0.6, 1.3, 7.0):
        blurred = gaussian_blur(white, torch.tensor([sigma]))
        assert blurred.max() <= 1
        torch.testing.assert_close(blurred, white)


def test_noise_has_the_levels_standard_deviation():
    grey = torch.full((64, 3, 32, 32), 0.5)
    noise = (gaussian_noise(grey, torch.full((64,), 20.0), torch.arange(64), seed=1) - 0.5) * 255
    assert noise.mean().item() == pytest.approx(0, abs=0.2)
    assert noise.std().item() == pytest.approx(20, rel=0.01)
    clipped = gaussian_noise(grey, torch.full((64,), 255.0), torch.arange(64))
    assert clipped.min() == 0
    assert clipped.max() == 1


def test_noise_is_normal():
    draws = standard_normal(torch.arange(400), 3072, seed=0).double()
    count = draws.numel()
    assert abs(draws.mean().item()) < 5 / count**0.5
    assert draws.var().item() == pytest.approx(1, abs=5 * (2 / count) ** 0.5)
    assert (draws**3).mean().item() == pytest.approx(0, abs=5 * (15 / count) ** 0.5)
    assert (draws**4).mean().item() == pytest.approx(3, abs=5 * (96 / count) ** 0.5)
    for z in (0.5, 1, 2, 3, 4):
        tail = 1 - torch.special.ndtr(torch.tensor(float(z), dtype=torch.float64)).item()
        assert (draws > z).double().mean().item() == pytest.approx(tail, abs=5 * (tail / count) ** 0.5)


@pytest.mark.parametrize("other", ["frame", "seed", "pixel", "four pixels on"])
def test_noise_is_independent(other):
    a = standard_normal(torch.arange(300), 3072, seed=0)
    b = {
        "frame": lambda: standard_normal(torch.arange(1, 301), 3072, seed=0),
        "seed": lambda: standard_normal(torch.arange(300), 3072, seed=1),
        "pixel": lambda: a.roll(1, dims=1),
        "four pixels on": lambda: a.roll(4, dims=1),
    }[other]()
    bound = 5 / a.numel() ** 0.5
    for f in (lambda x: x, lambda x: (x**2 - 1) / 2**0.5):
        assert abs((f(a) * f(b)).mean().item()) < bound


def test_noise_takes_any_frame_and_seed():
    for frame in (0, 1 << 31, 1 << 40):
        for seed in (-1, 0, 1 << 70):
            assert torch.isfinite(standard_normal(torch.tensor([frame]), 7, seed)).all()
    many = standard_normal(torch.tensor([0, 1, 1 << 31, 1 << 32, 1 << 33]), 48, seed=0)
    assert len({tuple(row.tolist()) for row in many}) == 5


def levels_of(rows):
    """Levels of every kind from those of blur and noise, (n, 2)."""
    given = torch.as_tensor(rows, dtype=torch.float64).reshape(-1, 2)
    levels = torch.zeros(len(given), len(KINDS), dtype=torch.float64)
    levels[:, BLUR], levels[:, NOISE] = given.unbind(1)
    return levels


def test_pristine_is_untouched():
    images = some_images(3) * 1.5 - 0.25  # values that clipping would change
    before = images.clone()
    out = distort(images, levels_of([[0, 0], [0, 0], [2, 9]]), torch.arange(3), seed=0)
    assert torch.equal(out[:2], before[:2])
    assert not torch.equal(out[2], before[2])
    assert torch.equal(images, before)


def test_kinds_are_applied_in_order():
    images, frame = some_images(1), torch.tensor([5])
    blurred = gaussian_blur(images, torch.tensor([2.0]))
    expected = gaussian_noise(blurred, torch.tensor([30.0]), frame, seed=4)
    assert torch.equal(distort(images, levels_of([[2, 30]]), frame, seed=4), expected)
    levels = torch.zeros(1, len(KINDS))
    levels[:, KINDS.index("rotation")], levels[:, KINDS.index("jpeg")] = 10, 60
    turned = DISTORTIONS["rotation"](images, torch.tensor([10.0]), frame, 4)
    assert torch.equal(
        distort(images, levels, frame, seed=4), DISTORTIONS["jpeg"](turned, torch.tensor([60.0]), frame, 4)
    )


@pytest.mark.parametrize("size", [(32, 32), (13, 7)])
def test_a_frame_alone_is_as_in_a_batch_of_256(size):
    images = some_images(256, *size)
    levels = torch.rand(256, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    levels = levels * torch.tensor([4.0, 60.0]) * (torch.arange(256)[:, None] % torch.tensor([3, 4]) > 0)
    levels = levels_of(levels)
    levels[7, BLUR] = 20
    frame = torch.arange(256) * 1000
    together = distort(images, levels, frame, seed=3)
    for i in range(0, 256, 5):
        alone = distort(images[i : i + 1], levels[i : i + 1], frame[i : i + 1], seed=3)
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(32, 32), (13, 7), (1, 1)])
def test_every_kind_spoils_more_at_a_higher_level_and_each_frame_by_itself(kind, size):
    images = some_images(40, *size)
    level = torch.linspace(0.02, 1, 40, dtype=torch.float64) ** 2 * MAX_LEVEL[kind]
    frame = torch.arange(40) * 1001
    together = DISTORTIONS[kind](images, level, frame, 3)
    assert together.shape == images.shape
    assert together.dtype == images.dtype
    assert together.min() >= 0
    assert together.max() <= 1
    for i in range(0, 40, 3):
        alone = DISTORTIONS[kind](images[i : i + 1], level[i : i + 1], frame[i : i + 1], 3)
        assert torch.equal(alone[0], together[i])
    if size == (32, 32):
        off = (together - images).abs().mean(dim=(1, 2, 3))
        assert off[-10:].mean() > 1.2 * off[:10].mean() > 0
    grey = DISTORTIONS[kind](images[:, :1], level, frame, 3)
    assert grey.shape == (40, 1, *size)


@pytest.mark.parametrize("kind", KINDS)
def test_numpys_images_come_out_as_torchs(kind):
    images, frame = some_images(6, 20, 24), np.arange(6) * 77
    level = np.linspace(0.1, 0.6, 6) * MAX_LEVEL[kind]
    theirs = DISTORTIONS[kind](images, torch.from_numpy(level), torch.from_numpy(frame), 3)
    mine = DISTORTIONS[kind](images.numpy(), level, frame, 3)
    assert mine.dtype == np.float32
    np.testing.assert_allclose(mine, theirs.numpy(), atol=1e-6)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"gaussian_blur", "defocus_blur", "low_contrast", "jpeg"}))
def test_what_is_drawn_follows_seed_and_frame(kind):
    image = some_images(1, 24, 24).expand(12, -1, -1, -1)
    level, frame = torch.full((12,), MAX_LEVEL[kind] / 5), torch.arange(12)
    one = DISTORTIONS[kind](image, level, frame, 0)
    assert torch.equal(one, DISTORTIONS[kind](image, level, frame, 0))
    assert not torch.equal(one, DISTORTIONS[kind](image, level, frame, 1))
    assert any(not torch.equal(one[0], other) for other in one[1:])


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.floats(0, 20), st.floats(0, 255)), min_size=2, max_size=8), st.randoms(use_true_random=False)
)
def test_batches_may_be_shuffled_and_cut(levels, random):
    images, levels, frame = some_images(len(levels), 6, 5), levels_of(levels), torch.arange(len(levels)) + 10
    order = list(range(len(levels)))
    random.shuffle(order)
    whole = distort(images, levels, frame, seed=0)
    half = order[: len(order) // 2]
    assert torch.equal(distort(images[order], levels[order], frame[order], seed=0), whole[order])
    assert torch.equal(distort(images[half], levels[half], frame[half], seed=0), whole[half])


def test_empty_batch():
    assert distort(some_images(0), levels_of([]), torch.arange(0), seed=0).shape == (0, 3, 12, 17)


def test_shapes_must_belong_together():
    with pytest.raises(ValueError, match="expected levels"):
        distort(some_images(2), levels_of([[0, 0]]), torch.arange(2), seed=0)
    with pytest.raises(ValueError, match="expected levels"):
        distort(some_images(2), levels_of([[0, 0], [0, 0]]), torch.arange(3), seed=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_gpu_gives_the_same_pixels():
    images = some_images(16)
    levels = levels_of([[i / 4, 3 * i] for i in range(16)])
    there = distort(images.cuda(), levels, torch.arange(16), seed=2)
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), distort(images, levels, torch.arange(16), seed=2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_random_distortion_follows_its_generator(kind):
    apply, images = random_distortion(kind, 1, 3), some_images(4)
    first, again, other = (apply(images, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, images)


@pytest.mark.parametrize(
    "arguments", [("snow", 0, 1), ("gaussian_blur", 2, 1), ("gaussian_blur", 0, 21), ("gaussian_noise", -1, 9)]
)
def test_random_distortion_checks_its_range(arguments):
    with pytest.raises(ValueError, match="expected one of"):
        random_distortion(*arguments)


def test_a_mixture_distorts_a_share_of_the_images_each_by_one_kind():
    levels = {"gaussian_blur": (1.0, 2.0), "gaussian_noise": (20.0, 30.0)}
    images = torch.rand(400, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mix = random_mixture(levels, 0.6)
    seen = mix(images, torch.Generator().manual_seed(1))
    assert torch.equal(seen, mix(images, torch.Generator().manual_seed(1)))
    same = (seen == images).flatten(1).all(1)
    assert 0.5 < 1 - float(same.double().mean()) < 0.7
    smoother = seen[~same].var((2, 3)).mean(1) < images[~same].var((2, 3)).mean(1)
    assert 0.4 < float(smoother.double().mean()) < 0.6  # blurred, not noisy
    assert torch.equal(random_mixture(levels, 0.0)(images, torch.Generator()), images)


@pytest.mark.parametrize(
    ("levels", "share"), [({}, 0.5), ({"gaussian_blur": (1.0, 2.0)}, 1.5), ({"snow": (0, 1)}, 0.5)]
)
def test_a_mixture_needs_kinds_and_a_share(levels, share):
    with pytest.raises(ValueError, match="expected"):
        random_mixture(levels, share)
