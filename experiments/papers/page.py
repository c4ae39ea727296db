"""`python -m eex.experiments.papers.page`: claims and docs/papers.md, made anew from the kept tables."""

from pathlib import Path

import pandas as pd

from eex.experiments.papers.paper import PAPERS, judge, plain, read_kept, script
from eex.policies.core.files import write_file

RESULTS = Path(__file__).parent.parent / "results"
PAGE = Path(__file__).parent.parent.parent / "docs" / "papers.md"
HEAD = """# The papers, reproduced

Each paper that eex implements has a script, which runs in a checkout: `python -m eex.experiments.papers NAME`. This
page shows what the full runs gave: what each paper claims, its figure, ours, and whether ours bears the claim out.
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
    parts = [HEAD]
    for name in PAPERS:
        folder = RESULTS / name
        if not (folder / "claims.csv").exists():
            continue
        paper, (run, _) = script(name), read_kept(folder)
        parts.append(f"## {name}\n\n{paper.TITLE}. Recipe: {recipe_name(name, run)}, on {run['data']}.\n")
        parts.append(_table(folder / "claims.csv"))
        parts.append(paper.NOTES.strip() + "\n")
        for figure in sorted(folder.glob("*.png")):
            parts.append(f"![{figure.stem}](../experiments/results/{name}/{figure.name})\n")
    return "\n".join(parts)


def recipe_name(name: str, run: dict[str, object]) -> str:
    """The name of the recipe that a finished run followed."""
    return next(r for r, given in script(name).RECIPES.items() if plain(given) == run["recipe"])


def _table(path: Path) -> str:
    """Claims as Markdown."""
    lines = ["| claim | published | ours | holds | why |", "|---|---|---|---|---|"]
    for row in pd.read_csv(path, keep_default_na=False).to_dict("records"):
        cells = [row["claim"], row["published"], row["ours"], "yes" if row["holds"] else "**no**", row["why"]]
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
