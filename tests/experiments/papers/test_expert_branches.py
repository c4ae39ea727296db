"""Expert branches: figures at a threshold worked by hand, the published tables, and the quick run."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from eex.experiments.papers.expert_branches import at_threshold, distorted, mixture, read_published
from eex.policies.core.errors import EexError

PUBLISHED = Path(__file__).parents[4] / "shared" / "data" / "expert-branches"


def test_figures_at_a_threshold():
    confidence = np.array([[0.9, 0.1, 0.5], [0.3, 0.8, 0.9], [0.6, 0.5, 0.7], [0.3, 0.5, 0.9]])
    prediction = np.array([[0, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 0]])
    found = at_threshold(confidence, prediction, np.array([0, 0, 0, 0]), 0.8)
    assert found["device"] == 0.5  # the first at exit 1, the second at exit 2
    assert (found["share_1"], found["share_2"], found["share_3"]) == (0.25, 0.25, 0.5)
    # the third: nobody reaches 0.8, and the final exit, at 0.7, is the most confident: class 1
    assert (found["accuracy_1"], found["accuracy_2"], found["accuracy_3"]) == (1.0, 1.0, 0.5)
    assert found["accuracy"] == 0.75
    assert math.isnan(at_threshold(confidence, prediction, np.zeros(4, dtype=int), 1.0)["accuracy_1"])


def test_the_most_confident_answers_where_nobody_reaches_the_threshold():
    confidence, prediction = np.array([[0.6, 0.5, 0.4]]), np.array([[2, 1, 0]])
    assert at_threshold(confidence, prediction, np.array([2]), 0.8)["accuracy"] == 1.0


def test_distorted_images_do_not_depend_on_the_batch():
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = distorted(images, (1.0, 20.0))
    assert torch.equal(distorted(images[4:], (1.0, 20.0), first=4), whole[4:])
    assert torch.equal(distorted(images, (0.0, 0.0)), images.float() / 255)


def test_mixture_is_blurred_and_noisy():
    flat = torch.full((4, 3, 32, 32), 0.5)
    flat[:, :, :, 16:] = 0.9
    mixed = mixture(flat, torch.Generator().manual_seed(0))
    assert mixed.shape == flat.shape
    assert (mixed[:, :, :, :8].std(dim=(1, 2, 3)) > 0.005).all()  # noise
    assert (mixed[:, :, :, 15].mean(dim=(1, 2)) > 0.55).all()  # the edge between the halves is smeared


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published tables are not here")
def test_published_tables():
    rows = read_published(PUBLISHED)
    at = rows[rows["p_tar"] == 0.8].set_index(["expert", "distortion", "level"])["accuracy"]
    # the figures that the paper's text and issue name
    assert at["pristine", "gaussian_blur", 2.0] == pytest.approx(0.382, abs=0.02)
    assert at["gaussian_blur", "gaussian_blur", 2.0] == pytest.approx(0.688, abs=0.02)
    assert rows["device"].between(0, 1).all()


def test_published_tables_that_are_none(tmp_path):
    with pytest.raises(EexError, match="not the published table"):
        read_published(tmp_path)


@pytest.fixture(scope="module")
def quick(paper):
    return paper("expert-branches")


def test_quick_run(quick):
    for name in ("fig3-accuracy-blur", "fig4-accuracy-3-noise", "fig5-device-blur", "fig6-latency-blur", "mixtures"):
        assert (quick.out / f"{name}.png").stat().st_size > 5000
    exits = pd.read_csv(quick.out / "exits.csv")
    assert set(exits["expert"]) == {"pristine", "gaussian_blur", "gaussian_noise", "mixture", "selected"}
    shares = exits[[f"share_{k}" for k in (1, 2, 3, 4)]]
    assert np.allclose(shares.sum(axis=1), 1)
    assert np.allclose(exits["device"], 1 - exits["share_4"])
    latency = pd.read_csv(quick.out / "latency.csv")
    assert (latency["latency_ms"] > 0).all()
    assert set(latency["model"]) == {"expert", "standard"}
    assert "claim nothing" in quick.output


def test_latencies_of_a_link_are_measured_once(quick):
    measured = (quick.out / "latency.csv").read_text()
    (quick.out / "latency.csv").unlink()
    links = {path: time for path, time in quick.again().items() if path.name.startswith("latency-")}
    assert (quick.out / "latency.csv").read_text() == measured
    assert links
    assert links.items() <= quick.times().items()
