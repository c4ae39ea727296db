"""`python -m eex.experiments.papers.page`: claims and docs/papers.md, made anew from the kept tables."""

from pathlib import Path
from typing import Any

import pandas as pd

from eex.experiments.papers.claims import VERDICTS
from eex.experiments.papers.paper import PAPERS, follows, judge, read_kept, script
from eex.policies.core.files import write_file

RESULTS = Path(__file__).parent.parent / "results"
PAGE = Path(__file__).parent.parent.parent / "docs" / "papers.md"
HEAD = """# The papers, reproduced

Each paper that eex implements has a script, which runs in a checkout: `python -m eex.experiments.papers NAME`. This
page shows what the full runs gave: what each paper claims, its figure, ours, and whether ours bears the claim out. A
claim *holds* or *does not hold* if our figures keep or miss its limit by more than their spread, and is *undecided* if
they do so by less. The spread is half the 95 % interval over test images, repeated measurements, or runs, whichever the
figures come from; where each network was trained once, it says nothing about other seeds.
Nothing was tuned until it agreed. Tables, figures and `run.json`, which holds the recipe, are in
`experiments/results/`; this page is made from them by `python -m eex.experiments.papers.page`.

```sh
.venv/bin/python -m eex.experiments.papers deex --quick                     # minutes, shipped images: claims nothing
.venv/bin/python -m eex.experiments.papers deex --data cifar10-images.zip   # reduced recipe: two cores, under two hours
.venv/bin/python -m eex.experiments.papers deex --data cifar10-images.zip --recipe paper --device cuda  # as the paper
```
"""


def page() -> str:
    """The text of docs/papers.md: claims, notes and figures of each paper whose results are kept."""
    judged = {name: pd.read_csv(RESULTS / name / "claims.csv", keep_default_na=False) for name in PAPERS}
    parts = [HEAD, _overview(judged)]
    for name, claims in judged.items():
        folder = RESULTS / name
        paper, (run, _) = script(name), read_kept(folder)
        parts.append(f"## {name}\n\n{paper.TITLE}. Recipe: {recipe_name(name, run)}, on {run['data']}.\n")
        holding, failing, undecided = _counts(claims).values()
        parts.append(f"Of {len(claims)} claims {holding} hold, {failing} do not, and {undecided} are undecided.\n")
        parts.append(_table(claims))
        parts.append(paper.NOTES.strip() + "\n")
        parts.append("What we could not do, and what it would take:\n\n" + paper.MISSING.strip() + "\n")
        for figure in sorted(folder.glob("*.png")):
            parts.append(f"![{figure.stem}](../experiments/results/{name}/{figure.name})\n")
    return "\n".join(parts)


def recipe_name(name: str, run: dict[str, Any]) -> str:
    """The name of the recipe that a finished run followed."""
    return next(r for r, given in script(name).RECIPES.items() if follows(run["recipe"], given))


def _counts(claims: pd.DataFrame) -> dict[str, int]:
    """How many claims have each verdict."""
    return {verdict: int((claims["verdict"] == verdict).sum()) for verdict in VERDICTS}


def _overview(judged: dict[str, pd.DataFrame]) -> str:
    """The verdicts of each paper and of all, as Markdown."""
    every = pd.concat(judged.values())
    lines = [f"| paper | claims | {' | '.join(VERDICTS)} |", "|---|---|---|---|---|"]
    for name, claims in {**judged, "all": every}.items():
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
