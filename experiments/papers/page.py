"""`python -m eex.experiments.papers.page`: claims and docs/papers.md, made anew from the kept tables."""

from pathlib import Path
from typing import Any

import pandas as pd

from eex.experiments.papers.claims import OWN, VERDICTS, by_seed
from eex.experiments.papers.paper import PAPERS, follows, judge, read_kept, script
from eex.policies.core.files import write_file

RESULTS = Path(__file__).parent.parent / "results"
PAGE = Path(__file__).parent.parent.parent / "docs" / "papers.md"
VERBS = {
    "holds": ("holds", "hold"),
    "does not hold": ("does not hold", "do not hold"),
    "undecided": ("is undecided", "are undecided"),
}
"""Verdicts on one claim and on several, in a sentence."""
HEAD = """# The papers, reproduced

eex implements what these papers propose, and for each of them a script trains networks, measures, and sets its figures
beside the published ones. This page lists what each paper claims, its figure, our figure, and whether ours bears the
claim out.

Each claim is turned into a limit, which is named where it is not plain. The claim *holds* if our figures are inside the
limit by more than their margin of error, *does not hold* if they are outside by more, and is *undecided* in between.
The margin is half the 95 % interval over test images, repeated measurements, or runs, whichever the figures come from;
where two networks or rules answer the same images, it is mostly that of the difference, image by image (elsewhere both
count as independent, which widens it); where a claim says something of many figures at once, it widens with their
number before one of them can refute it. Where networks were trained with several seeds, the figures are their means and
the margin includes their spread: with three seeds, two and a half standard deviations, so that a claim can be undecided
although each seed keeps the limit. Where each network was trained once, the margin says nothing about other seeds. By
how much a limit is kept or missed is in the unit of the figures; of shares, 0.01 is one point. No network was tuned
until it agreed. Limits and rows were revised after independent reviews by readers who knew the results; some of these
changes favour the papers, others do not.

Some rows are our own, marked "not in the paper": future work that a paper names, and checks. The first table counts
them apart.

The scripts run in a checkout:

```sh
.venv/bin/python -m eex.experiments.papers deex --quick                    # minutes, on shipped images; claims nothing
.venv/bin/python -m eex.experiments.papers deex --data cifar10-images.zip  # "reduced": under two hours on two cores
.venv/bin/python -m eex.experiments.papers deex --data cifar10-images.zip --recipe standard --estimate  # how long?
.venv/bin/python -m eex.experiments.papers deex --data cifar10-images.zip --recipe standard             # hours to days
.venv/bin/python -m eex.experiments.papers local-exit --data cifar10-images.zip --recipe paper --device cuda  # in full
```

An interrupted run goes on when the same command is given again. `--seeds N` trains every network N times, also after a
run has finished with fewer (except those behind rows that say "one seed"). `--jobs N` trains N networks at the same
time: one small network alone leaves a GPU, or most cores, idle. The networks are the same but for rounding; the seconds
that are noted for each training are then longer. Tables, figures and `run.json`, which holds the recipe, are in
`experiments/results/`; this page is made from them by `python -m eex.experiments.papers.page`. Weights are not kept
there, since those of any one paper that trains are larger than all tables and figures together (5 to 140 MB for each
seed): a run has them in its folder's `work/`.
"""


def page() -> str:
    """The text of docs/papers.md: claims, notes and figures of each paper whose results are kept."""
    judged = {name: pd.read_csv(RESULTS / name / "claims.csv", keep_default_na=False) for name in PAPERS}
    parts = [HEAD, _overview(judged)]
    for name, claims in judged.items():
        folder = RESULTS / name
        paper, (run, tables) = script(name), read_kept(folder)
        about = (paper.__doc__ or "").partition("\n")[0]
        recipe = f'Recipe "{recipe_name(name, run)}", on {run["data"]}'
        seeds, planned = len(by_seed(tables)), paper.RECIPES[recipe_name(name, run)].seeds
        if planned > 1:
            recipe += f", {seeds} of {planned} seeds" if seeds < planned else f", {seeds} seeds"
        parts.append(f"## {name}\n\n{about}\n\n{paper.TITLE}. {recipe}.\n")
        own = claims["published"] == OWN
        parts.append(
            " ".join(_in_words(claims[~own], "claim", "claims") + _in_words(claims[own], "row of ours", "rows of ours"))
            + "\n"
        )
        parts.append(_table(claims))
        parts.append(paper.NOTES.strip() + "\n")
        parts.append("What was not done, and what it would take:\n\n" + paper.MISSING.strip() + "\n")
        for figure in sorted(folder.glob("*.png")):
            parts.append(f"![{figure.stem}](../experiments/results/{name}/{figure.name})\n")
    return "\n".join(parts)


def recipe_name(name: str, run: dict[str, Any]) -> str:
    """The name of the recipe that a finished run followed."""
    return next(r for r, given in script(name).RECIPES.items() if follows(run["recipe"], given))


def _counts(claims: pd.DataFrame) -> dict[str, int]:
    """How many claims have each verdict."""
    return {verdict: int((claims["verdict"] == verdict).sum()) for verdict in VERDICTS}


def _in_words(claims: pd.DataFrame, one: str, several: str) -> list[str]:
    """How many have each verdict, as a sentence, if there are any."""
    if len(claims) == 1:
        return [f"One {one} {VERBS[claims['verdict'].iloc[0]][0]}."]
    holding, failing, undecided = (f"{n} {VERBS[v][n != 1]}" for v, n in _counts(claims).items())
    return [f"Of {len(claims)} {several}, {holding}, {failing}, and {undecided}."] if len(claims) else []


def _overview(judged: dict[str, pd.DataFrame]) -> str:
    """The verdicts of each paper, of all, and of rows of our own, as Markdown."""
    every = pd.concat(judged.values())
    theirs = {name: claims[claims["published"] != OWN] for name, claims in judged.items()}
    lines = [f"| paper | claims | {' | '.join(VERDICTS)} |", "|---|---|---|---|---|"]
    for name, claims in {
        **theirs,
        "all": every[every["published"] != OWN],
        OWN: every[every["published"] == OWN],
    }.items():
        lines.append(f"| {name} | {len(claims)} | {' | '.join(map(str, _counts(claims).values()))} |")
    return "\n".join(lines) + "\n"


def _table(claims: pd.DataFrame) -> str:
    """Claims as Markdown."""
    lines = ["| claim | published | ours | verdict | why |", "|---|---|---|---|---|"]
    for row in claims.to_dict("records"):
        verdict = row["verdict"] if row["verdict"] == "holds" else f"**{row['verdict']}**"
        cells = [row["claim"], row["published"], row["ours"], verdict, row["why"]]
        lines.append("| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Entry point."""
    for name in PAPERS:
        run, tables = read_kept(RESULTS / name)
        judge(script(name), RESULTS / name, tables, script(name).RECIPES[recipe_name(name, run)])
    write_file(PAGE, page())


if __name__ == "__main__":
    main()
