"""The distortion classifier on synthetic textures: it learns, repeats itself, and stays small."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from eex.models.arrays import choose_experts
from eex.models.spectrum import FLOOR, DistortionClassifier, fit_abstention, fit_classifier, fourier, recall
from eex.policies.core.errors import EexError

KINDS = ("pristine", "noise")


def add_noise(images, generator):
    return (images + 0.15 * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def textures(count: int, seed: int) -> torch.Tensor:
    """Smooth random patterns with some texture, uint8 (N, 3, 32, 32)."""
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.rand(count, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(smooth, size=32, mode="bilinear")
    at = torch.arange(32) / 32
    frequency = 2 + 4 * torch.rand(count, 1, 1, 1, generator=generator)
    waves = 0.1 * torch.sin(6.283 * frequency * (at[:, None] + at[None, :]))
    return ((smooth + waves).clamp(0, 1) * 255).to(torch.uint8)


def make(kinds=KINDS) -> DistortionClassifier:
    torch.manual_seed(0)
    return DistortionClassifier(kinds)


def test_learns_noise_and_repeats_itself():
    runs = []
    for _ in range(2):
        classifier, told = make(), []
        history = fit_classifier(
            classifier, textures(256, 0), {"noise": add_noise}, epochs=6, batch=32, seed=3, report=told.append
        )
        runs.append(classifier)
    assert [row["epoch"] for row in history] == list(range(6))
    assert history[-1]["loss"] < history[0]["loss"] / 2
    assert len(told) == 6 * (8 + 1)
    assert told[-1].accuracy == (history[-1]["accuracy"],)
    assert all(torch.equal(a, b) for a, b in zip(*(r.state_dict().values() for r in runs), strict=True))
    found = recall(runs[0], textures(100, 1), {"noise": add_noise}, seed=5)
    assert list(found) == list(KINDS)
    assert min(found.values()) > 0.95
    assert found == recall(runs[1], textures(100, 1), {"noise": add_noise}, seed=5)


def test_it_abstains_from_what_it_did_not_learn_and_from_few_others():
    classifier, noise = make(), {"noise": add_noise}
    fit_classifier(classifier, textures(256, 0), noise, epochs=6, batch=32, seed=3)
    bound = fit_abstention(classifier, textures(400, 1), noise)
    assert 0 < bound < 1
    images = textures(400, 2)
    before, after = (recall(classifier, images, noise, abstain_below=below) for below in (0.0, bound))
    assert all(0 <= before[kind] - after[kind] <= 0.05 for kind in KINDS)
    blocks = torch.nn.functional.avg_pool2d(images.float() / 255, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    faint = add_noise(blocks, torch.Generator().manual_seed(0)) * 0.3 + 0.7 * blocks  # a little noise, large pixels
    strange, known = (
        (choose_experts(classifier(x).detach().numpy(), bound)[1] == len(KINDS)).mean() for x in (faint, images / 255)
    )
    assert known <= 0.05 < strange


def test_another_seed_gives_other_weights():
    weights = []
    for seed in (0, 1):
        classifier = make()
        fit_classifier(classifier, textures(32, 0), {"noise": add_noise}, epochs=1, batch=16, seed=seed)
        weights.append(classifier.classifier.weight)
    assert not torch.equal(*weights)


@pytest.mark.parametrize("size", [(16, 16), (17, 40), (32, 32), (96, 64)])
def test_any_size(size):
    assert make().eval()(torch.rand(2, 3, *size)).shape == (2, 2)


def test_cost_and_size():
    classifier = make(("pristine", "gaussian_blur", "gaussian_noise")).eval()
    assert sum(p.numel() for p in classifier.parameters()) == 21_805
    with FlopCounterMode(display=False) as counter:
        classifier(torch.rand(1, 3, 32, 32))
    assert counter.get_total_flops() // 2 == 386_640


def test_spectrum_of_a_wave():
    at = torch.arange(32) / 32
    wave = 0.5 + 0.4 * torch.cos(6.2831853 * 5 * at)  # 5 periods across the width
    spectrum = make().spectrum(wave.expand(1, 3, 32, 32))[0, 0]  # (32, 17), vertical frequency 0 in row 16
    peaks = spectrum.flatten().topk(2).indices
    assert sorted(divmod(int(p), 17) for p in peaks) == [(16, 0), (16, 5)]
    assert float(spectrum[16, 5]) == pytest.approx(torch.tensor(0.2 * 32).log().item(), abs=1e-3)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 17, 20), (3, 33, 16)])
def test_the_transform_as_matrices(shape):
    images, (channels, height, width) = torch.rand(2, *shape), shape
    columns, rows = map(torch.from_numpy, fourier(channels, height, width))
    parts = columns @ images.flatten(1, 2)
    real, imaginary = (torch.cat([parts[:, :height], parts[:, height:]], dim=2) @ rows).chunk(2, dim=2)
    found = (real.square() + imaginary.square()).sqrt().add(FLOOR).log()
    torch.testing.assert_close(found, make().spectrum(images)[:, 0], atol=1e-3, rtol=0)


def test_recall_leaves_the_mode_alone():
    classifier = make().train()
    recall(classifier, textures(4, 0), {"noise": add_noise})
    assert all(m.training for m in classifier.modules())


@pytest.mark.parametrize("kinds", [("pristine",), ("blur", "noise"), ("pristine", "noise", "noise")])
def test_bad_kinds(kinds):
    with pytest.raises(EexError, match="kinds must name"):
        DistortionClassifier(kinds)


def test_bad_data():
    classifier, images = make(), textures(8, 0)
    with pytest.raises(EexError, match=r"distorts must hold \['noise'\], got \['blur'\]"):
        fit_classifier(classifier, images, {"blur": add_noise})
    with pytest.raises(EexError, match="expected uint8 images"):
        fit_classifier(classifier, images.float(), {"noise": add_noise})
    with pytest.raises(EexError, match="expected uint8 images"):
        recall(classifier, images[:0], {"noise": add_noise})
    with pytest.raises(EexError, match="epochs and batch"):
        fit_classifier(classifier, images, {"noise": add_noise}, epochs=0)
    with pytest.raises(EexError, match="at least 16x16"):
        classifier(torch.rand(1, 3, 8, 8))
