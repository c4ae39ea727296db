"""What every paper's script stands on: a folder that remembers, images, claims, and the table of them."""

import dataclasses
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from eex.policies.core.errors import EexError

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from torch import Tensor

    from eex.models.network import EarlyExitNet
    from eex.models.training import Distort, Recipe

SAMPLE = Path(__file__).parent.parent / "shipped" / "cifar10-train-sample.zip"
"""2,000 training images of CIFAR-10, 200 a class."""


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper, its figure and ours.

    Attributes
    ----------
    text
        What the paper says.
    published, ours
        The figures, in words.
    holds
        Whether ours bears the sentence out.
    why
        Where it does not, or where the figures differ: why.
    """

    text: str
    published: str
    ours: str
    holds: bool
    why: str = ""


class Paper(Protocol):
    """A paper's script: a module of `eex.experiments.papers`.

    Attributes
    ----------
    TITLE
        Authors, title, place and year.
    RECIPES
        How much is trained and measured, by name, as a frozen dataclass each: "quick" shows that the machinery works,
        "reduced" takes two cores under two hours, "paper" is what the paper did.
    NOTES
        What differs from the paper, in Markdown, for its section of docs/papers.md.
    """

    TITLE: str
    RECIPES: dict[str, Any]
    NOTES: str

    def run(self, work: "Work", recipe: Any) -> list[Claim]:
        """Train, measure and draw what is not done yet; tables through `Work.rows`, figures through `Work.draw`."""


@dataclass(frozen=True)
class Images:
    """Images that a script trains and measures on: uint8 (N, C, H, W) and classes (N,).

    `validation` is held out from the training split; nothing is chosen on `test`.
    """

    classes: tuple[str, ...]
    train: "tuple[Tensor, Tensor]"
    validation: "tuple[Tensor, Tensor]"
    test: "tuple[Tensor, Tensor]"

    def of(self, *classes: str) -> "Images":
        """The images of some classes, which are numbered anew."""
        import torch

        numbers = [self.classes.index(c) for c in classes]

        def part(images: "Tensor", labels: "Tensor") -> "tuple[Tensor, Tensor]":
            kept = torch.isin(labels, torch.tensor(numbers))
            anew = torch.zeros(len(self.classes), dtype=torch.int64)
            anew[numbers] = torch.arange(len(numbers))
            return images[kept], anew[labels[kept]]

        return Images(classes, part(*self.train), part(*self.validation), part(*self.test))


@dataclass(frozen=True)
class Work:
    """Where a script works: what is finished is kept in its folder and not done again.

    Tables (CSV), figures (PNG) and `run.json` lie in the folder itself, weights, checkpoints and logits in `work/`.

    Parameters
    ----------
    out
        The folder.
    data
        Images, as `eex.stream.frames.sources.open_source` takes them, with a train and a test split; "sample" for the
        shipped ones.
    size
        Scale and crop images to this side; 0 = as they are.
    device, threads
        Where to train and measure.
    seed
        Of everything that is drawn.
    quiet
        No progress bars.
    weights
        Published weights to start from, where a script can.
    published
        Folder of a paper's own results, where it published any.
    """

    out: Path
    data: str = "sample"
    size: int = 0
    device: str = "cpu"
    threads: int = 0
    seed: int = 0
    quiet: bool = False
    weights: Path | None = None
    published: Path | None = None
    bars: Callable[[str], Any] = field(default=lambda name: lambda progress: None)

    def begin(self, name: str, recipe: Any) -> None:
        """Make the folder, or go on in it.

        Raises
        ------
        EexError
            If it holds another run, or cannot be written to.
        """
        told = {
            "paper": name,
            "recipe": dataclasses.asdict(recipe),
            "data": Path(self.data).name,
            "size": self.size,
            "seed": self.seed,
            "weights": self.weights and self.weights.name,
        }
        path = self.out / "run.json"
        try:
            if path.exists():
                if json.loads(path.read_text()) != json.loads(json.dumps(told)):
                    raise EexError(f"{self.out}: holds a run with other settings; choose another folder with --out")
                return
            (self.out / "work").mkdir(parents=True, exist_ok=True)
            write(path, json.dumps(told, indent=1) + "\n")
        except (OSError, json.JSONDecodeError) as error:
            raise EexError(f"{path}: cannot be used: {error}; choose another folder with --out") from None

    def images(self, validation: int) -> Images:
        """The images, with so many of the training split held out, or a tenth where there are fewer than ten times as
        many.

        Raises
        ------
        EexError
            If they cannot be used, or have no labels.
        """
        import torch

        from eex.stream.frames.sources import load_all, open_source

        fitted: dict[str, Any] = {"shape": (3, self.size, self.size), "resize": True} if self.size else {}
        sample = self.data == "sample"
        train = open_source(str(SAMPLE) if sample else self.data, split="train", **fitted)
        test = open_source("sample" if sample else self.data, split="test", **fitted)
        if not train.classes or train.classes != test.classes:
            raise EexError(f"{self.data}: expected labelled images, in a folder for each class, in train/ and test/")
        pixels, labels, _ = load_all(train)
        held_out = min(validation, len(pixels) // 10)
        order = np.random.default_rng(0).permutation(len(pixels))
        held, kept = order[:held_out], order[held_out:]
        seen, truth, _ = load_all(test)
        return Images(
            train.classes,
            (torch.from_numpy(pixels[kept]), torch.from_numpy(labels[kept])),
            (torch.from_numpy(pixels[held]), torch.from_numpy(labels[held])),
            (torch.from_numpy(seen), torch.from_numpy(truth)),
        )

    def rows(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The table of this name, made if it is not there yet."""
        path = self.out / f"{name}.csv"
        if not path.exists():
            write(path, make().to_csv(index=False, float_format="%.6g"))
        return pd.read_csv(path)

    def draw(self, name: str, figure: "Figure") -> None:
        """Save a figure as PNG, in 128 colours: a third of the bytes."""
        from PIL import Image

        part, drawn = self.out / f"{name}.part", io.BytesIO()
        figure.savefig(drawn, dpi=110, format="png")
        try:
            Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(part, "PNG", optimize=True)
            os.replace(part, self.out / f"{name}.png")
        except OSError as error:
            raise EexError(f"{self.out / name}.png: cannot be written: {error.strerror}") from None

    def trained(
        self,
        name: str,
        net: "EarlyExitNet",
        images: "tuple[Tensor, Tensor]",
        recipe: "Recipe",
        *,
        validation: "tuple[Tensor, Tensor] | None" = None,
        expert: str = "",
        distort: "Distort | None" = None,
    ) -> pd.DataFrame:
        """Train a network in place, or load what was trained; returns one row an epoch.

        The rows have phase, epoch, loss, validation_loss, seconds and the validation accuracy of each exit
        (`accuracy_1` …).
        """
        from safetensors.torch import load_file, save_file

        from eex.models.network import PRISTINE
        from eex.models.training import fit

        net.to(self.device)
        weights, epochs = self.out / "work" / f"{name}.safetensors", self.out / "work" / f"{name}.csv"
        if weights.exists() and epochs.exists():
            net.load_state_dict(load_file(weights))
            net.eval()
            return pd.read_csv(epochs)
        checkpoint = self.out / "work" / f"{name}.checkpoint"
        history = fit(
            net,
            *images,
            recipe,
            expert=expert or PRISTINE,
            distort=distort,
            validation=validation,
            checkpoint=checkpoint,
            source=name,
            report=self.bars(name),
        )
        rows = []
        for row in history:
            accuracy = row.pop("accuracy", ())
            rows.append(row | {f"accuracy_{e + 1}": a for e, a in enumerate(accuracy)})
        table = pd.DataFrame(rows)
        try:
            save_file({k: v.cpu().contiguous() for k, v in net.state_dict().items()}, weights.with_suffix(".part"))
            os.replace(weights.with_suffix(".part"), weights)
        except OSError as error:
            raise EexError(f"{weights}: cannot be written: {error}") from None
        write(epochs, table.to_csv(index=False))
        checkpoint.unlink(missing_ok=True)
        return table

    def kept(self, name: str, make: "Callable[[], Tensor]") -> "torch.Tensor":
        """The tensor of this name, such as logits, made if it is not there yet."""
        from safetensors.torch import load_file, save_file

        path = self.out / "work" / f"{name}.safetensors"
        if not path.exists():
            part = path.with_suffix(".part")
            try:
                save_file({"kept": make().contiguous()}, part)
                os.replace(part, path)
            except OSError as error:
                raise EexError(f"{path}: cannot be written: {error}") from None
        return load_file(path)["kept"]


def write(path: Path, text: str) -> None:
    """Replace a file whole.

    Raises
    ------
    EexError
        If it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text)
        os.replace(part, path)
    except OSError as error:
        raise EexError(f"{path}: cannot be written: {error.strerror}") from None


def confidences(logits: "Tensor", temperatures: Sequence[float] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and prediction of every exit, each (N, exits), from logits (exits, N, K)."""
    import torch

    divisors = torch.tensor(temperatures or [1.0] * len(logits), dtype=torch.float64)[:, None, None]
    top = torch.softmax(logits.double() / divisors, dim=2).max(dim=2)
    return top.values.T.numpy(), top.indices.T.numpy()


def seeds_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval (Student's t); NaN for one value."""
    from scipy.special import stdtrit

    found = np.asarray(values, dtype=float)
    if len(found) < 2:
        return float(found.mean()), float("nan")
    return float(found.mean()), float(stdtrit(len(found) - 1, 0.975) * found.std(ddof=1) / len(found) ** 0.5)


def claims_table(claims: Sequence[Claim]) -> pd.DataFrame:
    """Claims as rows: claim, published, ours, holds, why."""
    return pd.DataFrame(
        {
            "claim": [c.text for c in claims],
            "published": [c.published for c in claims],
            "ours": [c.ours for c in claims],
            "holds": [c.holds for c in claims],
            "why": [c.why for c in claims],
        }
    )
