"""Whatever goes wrong ends in one line; claims, seeds, images and the page of results."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from eex.experiments.papers import deex, page
from eex.experiments.papers.__main__ import Run, main, run
from eex.experiments.papers.claims import VERDICTS, Claim, Facts, Group, Margin, evaluate, seeds_interval
from eex.experiments.papers.paper import (
    PAPERS,
    Images,
    PaperRecipe,
    Work,
    among,
    confidences,
    difference,
    draw,
    figures,
    follows,
    judge,
    plain,
    read_kept,
    reproduce,
    script,
)
from eex.policies.core.errors import EexError
from eex.policies.core.files import alone_in

ROOT = Path(__file__).parent.parent.parent.parent


def refused(monkeypatch, capsys, *arguments: str) -> str:
    """What the command writes when it refuses its arguments."""
    monkeypatch.setattr(sys, "argv", ["eex.experiments.papers", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["deex"], "--data: name the images to train and measure on"),
        (["deex", "--recipe", "huge", "--data", "x"], "--recipe huge: expected one of quick, reduced, standard, paper"),
        (["deex", "--data", "nowhere", "--out", "OUT"], "nowhere: no such source"),
        (["deex", "--quick", "--recipe", "paper"], "--quick is a recipe of its own; leave out --recipe paper"),
        (["deex", "--quick", "--threads", "-1"], "--threads must lie in [0, 1024], got -1"),
        (["expert-branches", "--quick", "--weights", "OUT/none.safetensors", "--out", "OUT"], "none.safetensors"),
        (["deex", "--quick", "--weights", "w"], "--weights: deex starts from none; only expert-branches does"),
        (["adaee", "--quick", "--size", "64"], "--size: adaee takes none; its images are scaled to what the shipped"),
        (["deex", "--quick", "--published", "p"], "--published: deex takes none; only expert-branches and adaee do"),
        (
            ["deex", "--quick", "--estimate", "--device", "cuda"],
            "--estimate: tells processor time; expected --device cpu",
        ),
    ],
)
def test_mistakes_are_refused_in_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    error = refused(monkeypatch, capsys, *(a.replace("OUT", str(tmp_path / "out")) for a in arguments))
    assert message in error
    assert error.strip().count("\n") == 0


def test_unknown_paper(monkeypatch, capsys):
    assert "expert-branches" in refused(monkeypatch, capsys, "resnet")


@pytest.mark.process
def test_the_package_runs_as_a_command():
    command = [sys.executable, "-m", "eex.experiments.papers", "deex"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "--data: name the images" in done.stderr
    assert done.stderr.strip().count("\n") == 0


def test_a_folder_of_another_run_is_left_alone(tmp_path):
    work = Work(tmp_path / "run")
    work.begin("deex", script("deex").RECIPES["quick"])
    (tmp_path / "run" / "images.csv").write_text("")
    work.begin("deex", script("deex").RECIPES["quick"])  # the same run goes on
    with pytest.raises(EexError, match=f"^{tmp_path}/run: holds a run with other settings; choose [^;]*$"):
        work.begin("deex", script("deex").RECIPES["reduced"])
    with pytest.raises(EexError, match="other settings"):  # nor are its networks taken for those of another
        run(Run("deex", data="sample", estimate=True, out=tmp_path / "run", quiet=True))
    (tmp_path / "file").write_text("")
    with pytest.raises(EexError, match="cannot be used"):
        Work(tmp_path / "file").begin("deex", script("deex").RECIPES["quick"])


def test_a_folder_has_one_run_at_a_time(tmp_path):
    with alone_in(tmp_path), pytest.raises(EexError, match="another process is writing there"):
        run(Run("deex", quick=True, out=tmp_path, quiet=True))


def test_a_folder_in_which_nothing_was_made_is_free(tmp_path):
    for data in ("nowhere.zip", "sample"):  # the first is mistyped
        Work(tmp_path, data).begin("deex", script("deex").RECIPES["quick"])
    assert json.loads((tmp_path / "run.json").read_text())["data"] == "sample"


def test_a_run_that_is_older_than_a_setting_goes_on(tmp_path):
    work = Work(tmp_path / "run")
    recipe = script("expert-branches").RECIPES["quick"]
    work.begin("expert-branches", recipe)
    (tmp_path / "run" / "images.csv").write_text("")
    kept = json.loads((tmp_path / "run" / "run.json").read_text())
    assert kept["recipe"].pop("backbone") == "mobilenet_v2"
    kept["recipe"]["seeds"] = 2
    (tmp_path / "run" / "run.json").write_text(json.dumps(kept))
    work.begin("expert-branches", recipe)
    work.begin("expert-branches", dataclasses.replace(recipe, seeds=5))  # more seeds go on with the same run
    with pytest.raises(EexError, match="other settings"):
        work.begin("expert-branches", dataclasses.replace(recipe, backbone="efficientnet_lite0"))


def test_what_authors_published_can_be_given_later_and_once(tmp_path):
    recipe, authors = script("expert-branches").RECIPES["quick"], tmp_path / "authors"
    mistyped = tmp_path / "mistyped"
    for published in (None, mistyped, authors, None, authors):
        Work(tmp_path / "run", published=published).begin("expert-branches", recipe)
        (tmp_path / "run" / "images.csv").write_text("")
    (tmp_path / "run" / "published.csv").write_text("")
    with pytest.raises(EexError, match="other settings"):
        Work(tmp_path / "run", published=tmp_path / "others").begin("expert-branches", recipe)


def test_settings_that_a_recipe_does_not_have_are_another_recipes():
    recipe = script("deex").RECIPES["quick"]
    assert follows(plain(recipe) | {"seeds": 2}, recipe)
    assert not follows(plain(recipe) | {"gone": 1}, recipe)
    assert not follows({k: v for k, v in plain(recipe).items() if k != "epochs"}, recipe)


def test_a_run_whose_tables_are_of_an_older_version_is_left_alone(tmp_path):
    work, path = Work(tmp_path), tmp_path / "run.json"
    work.begin("deex", script("deex").RECIPES["quick"])
    (tmp_path / "images.csv").write_text("")
    kept = json.loads(path.read_text())
    for older in ({k: v for k, v in kept.items() if k != "version"}, kept | {"version": kept["version"] - 1}):
        path.write_text(json.dumps(older))
        with pytest.raises(EexError, match=f"^{tmp_path}: holds a run of an older version; choose [^;]*$"):
            work.begin("deex", script("deex").RECIPES["quick"])


def test_tables_of_several_seeds_have_a_column_seed(tmp_path, monkeypatch):
    paper, seen = mock.Mock(PLOTS=(), CLAIMS=(), TABLES=("found",), ONCE=("dear",), OF_AUTHORS=()), []
    monkeypatch.setattr("eex.experiments.papers.paper.script", lambda name: paper)

    def measure(work, recipe):
        seen.append((work.seed, work.out))
        work.table("found", lambda: pd.DataFrame({"exit": [1, 2], "right": [0.5, 0.5 + work.seed / 10]}))
        if work.first:
            work.table("dear", lambda: pd.DataFrame({"right": [0.7]}))

    paper.measure = measure
    work = Work(tmp_path, seed=3)
    (tmp_path / "run.json").write_text('{"paper": "any"}')
    reproduce(paper, work, PaperRecipe())
    assert list(read_kept(tmp_path)[1]["found"]) == ["exit", "right"]
    reproduce(paper, work, PaperRecipe(seeds=3))
    assert seen == [(3, tmp_path), (4, tmp_path / "seed-1"), (5, tmp_path / "seed-2")]  # what is finished is left
    found = read_kept(tmp_path)[1]["found"]
    assert found["seed"].tolist() == [0, 0, 1, 1, 2, 2]
    assert found["right"].tolist() == [0.5, 0.8, 0.5, 0.9, 0.5, 1.0]
    (tmp_path / "seed-3").mkdir()  # begun, not finished
    assert read_kept(tmp_path)[1]["found"]["seed"].max() == 2
    (tmp_path / "more.csv").write_text("a\n1\n")  # which the other seeds do not have
    reproduce(paper, work, PaperRecipe(seeds=12))
    found = read_kept(tmp_path)[1]
    assert list(found) == ["dear", "found"]
    assert found["dear"]["seed"].tolist() == [0]
    assert found["found"]["right"].tolist()[1::2] == pytest.approx([0.8 + k / 10 for k in range(12)])


def test_trainings_are_estimated_and_not_done(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "calibration", "--quick", "--estimate", "--seeds", "2", "--threads", "1"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code
    lines = capsys.readouterr().out.splitlines()
    names = ["one-branch", "two-branches", "one-branch, seed-1", "two-branches, seed-1", "all 4 trainings"]
    assert [line.partition(":")[0] for line in lines] == names
    assert all(float(line.split(": ")[1].split()[0]) >= 0 for line in lines)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 3 GB")])
def test_too_little_memory_is_told_and_work_is_kept(error, tmp_path, monkeypatch):
    def measure(work, recipe):
        work.table("done", lambda: pd.DataFrame({"a": [1]}))
        raise error

    monkeypatch.setattr(script("deex"), "measure", measure)
    with pytest.raises(EexError, match="memory ran out; what is finished is kept"):
        run(Run("deex", quick=True, out=tmp_path / "run", quiet=True))
    assert (tmp_path / "run" / "done.csv").exists()


def test_other_errors_are_not_taken_for_it(tmp_path, monkeypatch):
    def measure(work, recipe):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(script("deex"), "measure", measure)
    with pytest.raises(RuntimeError, match="shapes differ"):
        run(Run("deex", quick=True, out=tmp_path / "run", quiet=True))


@pytest.mark.parametrize("name", PAPERS)
def test_every_paper_has_its_recipes_and_says_what_differs(name):
    paper = script(name)
    assert list(paper.RECIPES) == ["quick", "reduced", "standard", "paper"]
    assert len(paper.NOTES) > 100
    assert paper.TITLE


def test_tables_are_made_once(tmp_path):
    work = Work(tmp_path)
    made = []

    def make() -> pd.DataFrame:
        made.append(1)
        return pd.DataFrame({"x": [0.1, 0.2], "name": ["a", "b"]})

    first, second = work.table("table", make), work.table("table", make)
    assert made == [1]
    pd.testing.assert_frame_equal(first, second)


def test_images_of_some_classes_are_numbered_anew():
    pixels = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    part = (pixels, torch.tensor([0, 2, 1, 2]))
    pair = Images(("ape", "bee", "cat"), part, part, part).of("cat", "ape")
    assert pair.classes == ("cat", "ape")
    assert pair.test[0][:, 0, 0, 0].tolist() == [0, 1, 3]
    assert pair.test[1].tolist() == [1, 0, 0]


def test_images_of_a_class_that_is_not_there():
    pixels, labels = torch.zeros(2, 3, 2, 2, dtype=torch.uint8), torch.tensor([0, 1])
    images = Images(("bird", "cat"), *((pixels, labels),) * 3)
    with pytest.raises(EexError, match=r"^the images have no class dog, but bird, cat$"):
        images.of("cat", "dog")


def test_shipped_training_images_are_none_of_the_test_images():
    images = Work(Path("unused")).images(200)
    assert (len(images.train[0]), len(images.validation[0]), len(images.test[0])) == (360, 40, 600)
    assert len(images.classes) == 10
    assert torch.bincount(images.test[1]).tolist() == [60] * 10
    seen = {bytes(x.numpy().tobytes()) for x in images.test[0]}
    assert not any(bytes(x.numpy().tobytes()) in seen for x in images.train[0])


def test_confidences_are_those_of_the_temperature():
    logits = torch.tensor([[[2.0, 0.0]], [[0.0, 4.0]]])
    confidence, prediction = confidences(logits, [1.0, 2.0])
    assert confidence[0].tolist() == pytest.approx([1 / (1 + 2.718281828**-2)] * 2)
    assert prediction.tolist() == [[0, 1]]


def test_intervals():
    assert seeds_interval([1.0, 2.0, 3.0]) == (2.0, pytest.approx(4.302653 / 3**0.5, rel=1e-5))
    assert seeds_interval([5.0])[0] == 5.0


def test_claims_are_judged_and_shown_as_they_are():
    def facts(tables, recipe):
        yield Facts(a=0.4, b=tables["t"]["x"].max())

    groups = [
        Group(
            facts,
            (
                Claim("a > {b:g}", "41 %", "{a:%}", lambda f: f.a > f.b, otherwise="never shown"),
                Claim("c", "—", "{b:g}", lambda f: f.b > 1, "because | of", otherwise="{a:g}"),
                Claim("d", "—", "{b:g}", lambda f: [f.b < 1, Margin(0.1, 0.2)], otherwise="{a:g}"),
            ),
        )
    ]
    rows = evaluate(groups, {"t": pd.DataFrame({"x": [0.1, 0.2]})}, recipe=None)
    assert rows["verdict"].tolist() == list(VERDICTS)
    assert rows["why"].tolist() == ["", "because | of; 0.4", "0.4; the limit is kept by 0.1 ± 0.2"]
    table = page._table(rows)
    assert "| a > 0.2 | 41 % | 40.0 % | holds |" in table
    assert r"| **does not hold** | because \| of; 0.4 |" in table
    assert "| all | 3 | 1 | 1 | 1 |" in page._overview({"paper": rows})


@pytest.mark.parametrize("name", PAPERS)
def test_every_claim_is_judged_with_a_figure_and_the_page_says_what_is_missing(name):
    claims = pd.read_csv(page.RESULTS / name / "claims.csv", keep_default_na=False)
    assert set(claims["verdict"]) <= set(VERDICTS)
    assert claims["ours"].str.contains(r"\d").all()
    assert not claims[["ours", "why"]].apply(lambda texts: texts.str.contains(r"\de[+-]\d")).any(axis=None)
    assert (
        claims.loc[claims["verdict"] == "undecided", "why"]
        .str.contains("the limit is (?:kept|missed) by|nothing was measured")
        .all()
    )
    assert script(name).MISSING.strip() in page.page()


@pytest.mark.parametrize("name", PAPERS)
def test_kept_tables_give_the_kept_claims_and_figures(name, tmp_path):
    kept = page.RESULTS / name
    settings, tables = read_kept(kept)
    claims = judge(script(name), tmp_path, tables, script(name).RECIPES[page.recipe_name(name, settings)])
    assert len(claims) >= 13
    assert (tmp_path / "claims.csv").read_text() == (kept / "claims.csv").read_text()
    drawn = dict(figures(script(name), tables))
    assert set(drawn) == {p.stem for p in kept.glob("*.png")}
    for figure in drawn.values():
        shown = [axis for axis in figure.axes if axis.get_visible()]
        assert all(axis.lines or axis.images for axis in shown)


@pytest.mark.paper
@pytest.mark.parametrize("name", PAPERS)
def test_figures_are_written_from_the_kept_tables(name, tmp_path):
    _, tables = read_kept(page.RESULTS / name)
    draw(script(name), tmp_path, tables)
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in (page.RESULTS / name).glob("*.png")}
    assert all(p.stat().st_size > 5000 for p in tmp_path.iterdir())


def test_the_page_is_made_from_the_kept_results():
    assert (ROOT / "docs" / "papers.md").read_text() == page.page(), (
        "python -m eex.experiments.papers.page > docs/papers.md"
    )


# ---- spreads of shares of the same images


def drawn(images: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Whether images are right and chosen by two ways of answering them that agree on most."""
    rng = np.random.default_rng(seed)
    right = rng.random(images) < 0.8
    also = np.where(rng.random(images) < 0.1, rng.random(images) < 0.5, right)
    chosen = rng.random(images) < 0.6
    return right, also, chosen, chosen & (rng.random(images) < 0.9)


def test_what_images_add_to_a_share_comes_to_the_share():
    right, _, chosen, _ = drawn(500)
    assert among(right, chosen).mean() == pytest.approx(right[chosen].mean())
    assert np.isnan(among(right, np.zeros(500, dtype=bool))).all()
    every = among(right, np.ones(500, dtype=bool))
    np.testing.assert_allclose(every, right)


def test_the_spread_of_a_difference_is_that_over_other_images():
    found, halves = [], []
    for seed in range(600):
        right, also, chosen, fewer = drawn(400, seed)
        change, half = difference(among(right, chosen), among(also, fewer))
        assert change == pytest.approx(right[chosen].mean() - also[fewer].mean())
        found.append(change)
        halves.append(half)
    assert np.mean(halves) == pytest.approx(1.96 * np.std(found), rel=0.06)
    apart = 1.96 * (right[chosen].var() / chosen.sum() + also[fewer].var() / fewer.sum()) ** 0.5
    assert half < 0.7 * apart  # taken for different images, they would spread more


def test_what_is_alike_differs_by_nothing():
    right, *_ = drawn(400)
    assert difference(right, right) == (0.0, 0.0)


@pytest.mark.parametrize("content", [b"", b'a\n"b', b"\xff\xfe,1\n2,3\n"])
def test_a_damaged_table_of_a_run_is_named(content, tmp_path):
    (tmp_path / "answers.csv").write_bytes(content)
    with pytest.raises(EexError, match=r"^\S*answers\.csv: not a table \(.+\); delete the file to have it made anew$"):
        Work(tmp_path).table("answers", lambda: pytest.fail("made anew"))


def test_weights_of_a_run_that_do_not_fit_are_named(tmp_path):
    (tmp_path / "work").mkdir()
    kept = tmp_path / "work" / "full.safetensors"
    pd.DataFrame({"epoch": [0]}).to_csv(tmp_path / "work" / "full.csv")
    images = Work(tmp_path).images(10)

    def trained(branches: int) -> None:
        Work(tmp_path, quiet=True).trained("full", lambda: deex.network(images.classes, branches), images, epochs=1)

    save_file({k: v.contiguous() for k, v in deex.network(images.classes, 2).state_dict().items()}, kept)
    trained(2)
    with pytest.raises(EexError, match=r"full\.safetensors: weights of another network; delete the file"):
        trained(4)
    kept.write_bytes(b"damaged")
    with pytest.raises(EexError, match=r"full\.safetensors: neither a safetensors file .+; delete the file"):
        trained(2)
    with pytest.raises(EexError, match=r"full\.safetensors: neither a safetensors file .+; delete the file"):
        Work(tmp_path).kept("full", lambda: pytest.fail("made anew"))
