"""`python -m eex.experiments.papers NAME`: reproduce a paper, print its claims beside ours, keep tables and figures."""

import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
import tyro

from eex.experiments.papers.paper import Name, Work, estimate, out_of_memory, reproduce, script
from eex.policies.core.errors import EexError
from eex.policies.core.files import alone_in
from eex.policies.core.options import check_seed, check_threads
from eex.stream.guard import guarded, hush


@dataclass(frozen=True)
class Run:
    """Reproduce one of the papers that eex implements: train, measure, draw, and print which of its claims hold.

    An interrupted run continues where it stopped when the same command is given again.
    """

    name: tyro.conf.Positional[Name]
    """Paper to reproduce; strategies is the survey of deployment strategies."""
    quick: bool = False
    """Run for a few minutes on the shipped images, to see that everything works; such figures claim nothing."""
    recipe: str = ""
    """How much to train and measure: reduced (two cores, under two hours; the default), standard (until what the paper
    is about can show; hours to days on two cores) or paper (what the paper did)."""
    data: str = ""
    """Images with a train and a test split: a folder or zip of train/class/image, or the original folder of CIFAR-10 or
    Caltech-256."""
    size: int = 0
    """Scale and crop images to squares of this side, in pixels; 0 keeps them as they are, or as large as the recipe of
    expert-branches has them. Not for adaee."""
    out: Path | None = None
    """Folder for tables and figures; by default runs/papers/NAME-RECIPE."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device to train and measure on."""
    threads: int = 0
    """CPU threads; 0 = all cores."""
    seed: int = 0
    """Seed of the trainings, and of what policies and links draw. The images that are held out are always the same."""
    seeds: int = 0
    """How many times each network is trained, each time with another seed; 0 is the recipe's number. A finished run
    goes on with more of them. What deex says of four side branches is of the first seed alone."""
    jobs: int = 1
    """Networks that are trained at the same time, each in a process of its own: small networks finish sooner this way,
    on several cores and on a GPU. --threads is then for each of them; 0 divides the cores among them."""
    estimate: bool = False
    """Print the processor time that the trainings that are left would take on this machine, from a few measured steps
    of each, and end."""
    weights: Path | None = None
    """For expert-branches: torchvision's published mobilenet_v2 (safetensors) to start from."""
    published: Path | None = None
    """Folder of the paper's own results, which are drawn beside ours: the authors' CSV files for expert-branches and
    adaee."""
    quiet: bool = False
    """Print nothing and show no progress bars."""

    @property
    def effort(self) -> str:
        """Name of the recipe."""
        return "quick" if self.quick else self.recipe or "reduced"

    @property
    def folder(self) -> Path:
        """Where tables and figures are kept."""
        return self.out or Path("runs") / "papers" / f"{self.name}-{self.effort}"


def run(config: Run) -> pd.DataFrame | None:
    """Reproduce a paper as configured; returns its claims, or None where it was only estimated.

    Raises
    ------
    EexError
        If images, recipe or folder cannot be used, or memory runs out.
    """
    check_threads(config.threads)
    check_seed(config.seed)
    for name, least in {"seeds": 0, "size": 0, "jobs": 1}.items():
        if getattr(config, name) < least:
            raise EexError(f"--{name} must be at least {least}, got {getattr(config, name)}")
    if config.quick and config.recipe:
        raise EexError(f"--quick is a recipe of its own; leave out --recipe {config.recipe}")
    paper = script(config.name)
    if config.effort not in paper.RECIPES:
        raise EexError(f"--recipe {config.effort}: expected one of {', '.join(paper.RECIPES)}")
    if config.weights and config.name != "expert-branches":
        raise EexError(f"--weights: {config.name} starts from none; only expert-branches does")
    if config.size and config.name == "adaee":
        raise EexError("--size: adaee takes none; its images are scaled to what the shipped model takes")
    if config.published and not paper.OF_AUTHORS:
        raise EexError(f"--published: {config.name} takes none; only expert-branches and adaee do")
    if config.estimate and config.device != "cpu":
        raise EexError(f"--estimate: tells processor time; expected --device cpu, got {config.device}")
    if not config.data and not config.quick:
        raise EexError("--data: name the images to train and measure on, or take --quick, which uses the shipped ones")
    from eex.stream.network import pick_device
    from eex.stream.training.bars import training_bars

    if config.threads:
        import torch

        torch.set_num_threads(config.threads)
    recipe = paper.RECIPES[config.effort]
    recipe = dataclasses.replace(recipe, seeds=config.seeds or recipe.seeds)
    with training_bars(config.quiet) as bars:
        work = Work(
            config.folder,
            config.data or "sample",
            config.size,
            pick_device(config.device),
            config.threads,
            config.seed,
            config.quiet,
            config.weights,
            config.published,
            bars=bars,
        )
        try:
            if config.estimate:
                work.begin(config.name, recipe, only_look=True)
                print_estimate(estimate(paper, work, recipe))
                return None
            with alone_in(work.out):
                work.begin(config.name, recipe)
                if config.jobs > 1:
                    from eex.experiments.papers.side_by_side import train_side_by_side

                    train_side_by_side(config.name, work, recipe, config.jobs)
                claims = reproduce(paper, work, recipe)
            theirs = [work.out / f"{name}.csv" for name in paper.OF_AUTHORS]
            if not config.published and not config.quiet and not all(path.exists() for path in theirs):
                print(f"{config.name}: without --published FOLDER, nothing that its authors measured", file=sys.stderr)
            return claims
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise EexError(
                f"memory ran out; what is finished is kept in {config.folder}: close other programs, or choose a "
                "smaller --size or recipe, and start again"
            ) from None


def print_estimate(seconds: dict[str, float]) -> None:
    """The processor time of each training that is left, and of all."""
    for name, took in {**seconds, f"all {len(seconds)} trainings": sum(seconds.values())}.items():
        print(f"{name}: {took / 3600:.2f} hours of one processor core")


def print_claims(config: Run, claims: pd.DataFrame) -> None:
    """The claims as a table; of a quick run without the verdicts."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=script(config.name).TITLE, title_justify="left", show_lines=True)
    columns = [name for name in claims.columns if not config.quick or name not in ("verdict", "why")]
    for name in columns:
        table.add_column(name)
    for row in claims.to_dict("records"):
        table.add_row(*(row[name] for name in columns))
    Console(markup=False).print(table)
    if config.quick:
        print("quick: a few images and epochs; these figures claim nothing")
    print(f"tables and figures: {config.folder}{os.sep}")


def main() -> None:
    """Entry point."""
    sys.exit(guarded(_main))


def _main() -> None:
    config = tyro.cli(Run, prog="python -m eex.experiments.papers", config=(tyro.conf.FlagCreatePairsOff,))
    if config.quiet:
        hush()
    claims = run(config)
    if claims is not None and not config.quiet:
        print_claims(config, claims)


if __name__ == "__main__":
    main()
