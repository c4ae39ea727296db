"""`eex-paper`: run a paper's script, print its claims beside ours, keep tables and figures."""

import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import tyro

from eex.experiments.papers.paper import Claim, Paper, Work, claims_table, write
from eex.policies.core.errors import EexError
from eex.stream.guard import guarded

PAPERS = ("expert-branches", "local-exit", "deex", "calibration", "adaee", "strategies")
MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


@dataclass(frozen=True)
class Run:
    """Reproduce one of the papers that eex implements: train, measure, draw, and print what holds.

    An interrupted run goes on where it was when the same command is given again.
    """

    name: tyro.conf.Positional[Literal["expert-branches", "local-exit", "deex", "calibration", "adaee", "strategies"]]
    """Which paper; strategies is the survey of deployment strategies."""
    quick: bool = False
    """A few minutes on the shipped images, to see that everything works: its figures claim nothing."""
    recipe: str = "reduced"
    """How much to train and measure: reduced (two cores, under two hours) or paper (what the paper did)."""
    data: str = ""
    """Images with a train and a test split: a folder or zip of train/class/image, CIFAR-10's or Caltech-256's own
    folder."""
    size: int = 0
    """Scale and crop images to this side; 0 = as they are."""
    out: Path | None = None
    """Folder for tables and figures; by default runs/papers/NAME-RECIPE."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to train and measure."""
    threads: int = 0
    """Processor threads; 0 = all cores."""
    seed: int = 0
    """Of everything that is drawn."""
    weights: Path | None = None
    """For expert-branches: torchvision's published mobilenet_v2 (safetensors) to start from."""
    published: Path | None = None
    """Folder of the paper's own results, drawn beside ours: for expert-branches its authors' CSV files."""
    quiet: bool = False
    """No progress bars."""


def script(name: str) -> Paper:
    """The module of a paper."""
    return cast(Paper, importlib.import_module(f"eex.experiments.papers.{name.replace('-', '_')}"))


def reproduce(config: Run) -> list[Claim]:
    """Run a paper's script in its folder; returns its claims, which are kept there as `claims.csv`.

    Raises
    ------
    EexError
        If images, recipe or folder cannot be used, or memory runs out.
    """
    for name in ("threads", "seed", "size"):
        if getattr(config, name) < 0:
            raise EexError(f"--{name} must be at least 0, got {getattr(config, name)}")
    paper = script(config.name)
    recipe_name = "quick" if config.quick else config.recipe
    if recipe_name not in paper.RECIPES:
        raise EexError(f"--recipe {recipe_name}: expected one of {', '.join(paper.RECIPES)}")
    if not config.data and recipe_name != "quick":
        raise EexError("--data: name the images to train and measure on, or take --quick, which runs on shipped ones")
    recipe: Any = paper.RECIPES[recipe_name]
    from eex.stream.network import pick_device
    from eex.stream.training.bars import training_bars

    if config.threads:
        import torch

        torch.set_num_threads(config.threads)
    out = config.out or Path("runs") / "papers" / f"{config.name}-{recipe_name}"
    with training_bars(config.quiet) as bars:
        work = Work(
            out,
            config.data or "sample",
            config.size,
            pick_device(config.device),
            config.threads,
            config.seed,
            config.quiet,
            config.weights,
            config.published,
            bars,
        )
        work.begin(config.name, recipe)
        try:
            claims = paper.run(work, recipe)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not any(m in str(error).lower() for m in MEMORY):
                raise
            raise EexError(
                f"memory ran out; what is finished is kept in {out}: close other programs, or give a smaller "
                "--size or recipe, and start it again"
            ) from None
    write(out / "claims.csv", claims_table(claims).to_csv(index=False))
    return claims


def show(config: Run, paper: Paper, claims: list[Claim]) -> None:
    """Print the table of claims."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=paper.TITLE, title_justify="left", show_lines=True)
    for name in ("claim", "published", "ours") + (() if config.quick else ("holds", "why")):
        table.add_column(name)
    for c in claims:
        verdict = () if config.quick else ("yes" if c.holds else "no", c.why)
        table.add_row(c.text, c.published, c.ours, *verdict)
    Console().print(table)


def main() -> None:
    """Entry point of `eex-paper`."""
    sys.exit(guarded(_main))


def _main() -> None:
    config = tyro.cli(Run, prog="eex-paper", config=(tyro.conf.FlagCreatePairsOff,))
    claims = reproduce(config)
    if config.quiet:
        return
    show(config, script(config.name), claims)
    out = config.out or Path("runs") / "papers" / f"{config.name}-{'quick' if config.quick else config.recipe}"
    if config.quick:
        print("quick: a few images and epochs; these figures claim nothing")
    print(f"tables and figures: {out}{os.sep}")


if __name__ == "__main__":
    main()
