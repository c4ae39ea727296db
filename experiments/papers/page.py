"""`python -m eex.experiments.papers.page`: docs/papers.md, from the kept results of the full runs."""

import json
import sys
from pathlib import Path

import pandas as pd

from eex.experiments.papers.main import PAPERS, script

RESULTS = Path(__file__).parent.parent / "results"
HEAD = """# The papers, reproduced

Each paper that eex implements has a script, `eex-paper NAME`. This page shows what its full run gave: what the paper
claims, its figure, ours, and whether ours bears the claim out. Nothing was tuned until it agreed. Tables, figures and
`run.json`, which holds the recipe, lie in `experiments/results/`; this page is made from them by
`python -m eex.experiments.papers.page`.

```sh
eex-paper deex --quick                                     # minutes, on shipped images: claims nothing
eex-paper deex --data cifar10-images.zip                   # the reduced recipe: two cores, under two hours
eex-paper deex --data cifar10-images.zip --recipe paper    # what the paper did; --device cuda
```
"""


def page() -> str:
    """The text of docs/papers.md: of each paper whose results are kept, claims, notes and figures."""
    parts = [HEAD]
    for name in PAPERS:
        folder = RESULTS / name
        if not (folder / "claims.csv").exists():
            continue
        paper, run = script(name), json.loads((folder / "run.json").read_text())
        recipe = next((r for r, given in paper.RECIPES.items() if _plain(given) == run["recipe"]), "of its own")
        parts.append(f"## {name}\n\n{paper.TITLE}. Recipe: {recipe}, on {run['data']}.\n")
        parts.append(_table(folder / "claims.csv"))
        parts.append(paper.NOTES.strip() + "\n")
        for figure in sorted(folder.glob("*.png")):
            parts.append(f"![{figure.stem}](../experiments/results/{name}/{figure.name})\n")
    return "\n".join(parts)


def _plain(recipe: object) -> object:
    import dataclasses

    return json.loads(json.dumps(dataclasses.asdict(recipe)))  # type: ignore[call-overload]


def _table(path: Path) -> str:
    """Claims as Markdown."""
    lines = ["| claim | published | ours | holds | why |", "|---|---|---|---|---|"]
    for row in pd.read_csv(path, keep_default_na=False).to_dict("records"):
        cells = [row["claim"], row["published"], row["ours"], "yes" if row["holds"] else "**no**", row["why"]]
        lines.append("| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Entry point."""
    sys.stdout.write(page())


if __name__ == "__main__":
    main()
