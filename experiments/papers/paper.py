"""What the papers' scripts share: images, a folder that keeps what is finished, and the runner.

A script trains and makes tables; its figures and claims are data (`eex.experiments.plotting.Plot`,
`eex.experiments.papers.claims`), drawn and judged from the tables alone.
"""

import copy
import dataclasses
import importlib
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args

import numpy as np
import pandas as pd

from eex.experiments.papers.claims import Group, Tables, by_seed, evaluate, pooled, seeds_interval
from eex.policies.core.base import Bools, Context, Floats, Ints, Policy
from eex.policies.core.errors import EexError
from eex.policies.core.files import replacing, write_file
from eex.policies.core.routing import answer, seen
from eex.policies.core.world import step

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from eex.experiments.plotting import Plot
    from eex.models.network import EarlyExitNet
    from eex.models.training import Distort, Recipe

SAMPLE = Path(__file__).parent.parent / "shipped" / "cifar10-train-sample.zip"
"""2,000 training images of CIFAR-10, 200 per class."""
SAMPLED = {"train": 400, "test": 600}
"""How many of the shipped images are used: enough to see that everything works, in little time."""
VERSION = 2
"""Of the tables; a run of another version cannot go on."""
STEPS = 5
"""Steps of a training that are measured to tell how long it takes."""
ANEW = "delete the file to have it made anew"
MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
Name = Literal["expert-branches", "local-exit", "deex", "calibration", "adaee", "strategies"]
PAPERS: tuple[str, ...] = get_args(Name)


class Paper(Protocol):
    """A paper's script: a module of `eex.experiments.papers`.

    Attributes
    ----------
    TITLE
        Authors, title, place and year.
    RECIPES
        How much is trained and measured, by name, each a `PaperRecipe`: "quick" shows that the machinery works,
        "reduced" takes two cores under two hours, "standard" trains until what the paper is about can show, "paper" is
        what the paper did.
    TABLES, ONCE, OF_AUTHORS
        Names of the tables that `measure` makes with each seed; of those that it makes with the first alone
        (`Work.first`); and of those that it makes of what the authors published, if given.
    PLOTS, CLAIMS
        Figures and claims, over these tables.
    NOTES
        What differs from the paper, in Markdown, for its section of docs/papers.md.
    MISSING
        What could not be done, and what that would take.
    """

    TITLE: str
    RECIPES: dict[str, Any]
    TABLES: Sequence[str]
    ONCE: Sequence[str]
    OF_AUTHORS: Sequence[str]
    PLOTS: Sequence["Plot"]
    CLAIMS: Sequence[Group]
    NOTES: str
    MISSING: str

    def networks(self, work: "Work", recipe: Any) -> Any:
        """Train the networks that are not trained yet, through `Work.train`; what `measure` works with."""

    def measure(self, work: "Work", recipe: Any) -> None:
        """Train and measure what is not done yet, with one seed: tables, made through `Work.table`."""


@dataclass(frozen=True, kw_only=True)
class PaperRecipe:
    """How much is trained and measured, with each of so many `seeds`."""

    seeds: int = 1


def script(name: str) -> Paper:
    """The module of a paper."""
    return cast(Paper, importlib.import_module(f"eex.experiments.papers.{name.replace('-', '_')}"))


def reproduce(paper: Paper, work: "Work", recipe: PaperRecipe) -> pd.DataFrame:
    """Make a paper's tables with each seed, draw its figures and judge its claims, which are kept and returned."""
    for part in unmeasured(paper, work, recipe.seeds):
        (part.out / "work").mkdir(parents=True, exist_ok=True)
        paper.measure(part, recipe)
    tables = of_seeds([_tables(part.out) for part in work.by_seed(recipe.seeds)], paper.ONCE)
    draw(paper, work.out, tables)
    return judge(paper, work.out, tables, recipe)


def unmeasured(paper: Paper, work: "Work", seeds: int) -> "list[Work]":
    """Where tables are missing: where none is, nothing is trained again, even if the networks are gone."""
    each = [*paper.TABLES, *(paper.OF_AUTHORS if work.published is not None else ())]
    needed = ((part, [*each, *(paper.ONCE if part.first else ())]) for part in work.by_seed(seeds))
    return [part for part, names in needed if not all((part.out / f"{name}.csv").exists() for name in names)]


def estimate(paper: Paper, work: "Work", recipe: Any) -> dict[str, float]:
    """Processor seconds that each training of a recipe takes that is not done yet, by name, from a few measured steps.

    Validation after each epoch, and what is measured on the trained networks, come on top.
    """
    found: dict[str, float] = {}
    for part in unmeasured(paper, work, recipe.seeds):
        steps: dict[str, float] = {}

        def measured(training: Training, steps: dict[str, float] = steps) -> bool:
            if training.name not in steps:  # several others may build on it
                steps[training.name] = step_seconds(training)
            return True

        paper.networks(dataclasses.replace(part, instead=measured), recipe)
        found |= {name if part is work else f"{name}, {part.out.name}": seconds for name, seconds in steps.items()}
    return found


def figures(paper: Paper, tables: Tables) -> "Iterator[tuple[str, Figure]]":
    """Names and figures, drawn from finished tables; with several seeds, means and their 95 % intervals."""
    from eex.experiments.plotting import draw_all

    parts = by_seed(tables)

    def rows(plot: "Plot", _: Tables) -> pd.DataFrame:
        name = plot.rows
        found = [part[name] for part in parts if name in part] if isinstance(name, str) else [*map(name, parts)]
        return pooled(found, spread=None if plot.matrix else plot.y) if len(found[0]) else found[0]

    plots = [dataclasses.replace(plot, rows=partial(rows, plot)) for plot in paper.PLOTS]
    return draw_all(plots if len(parts) > 1 else paper.PLOTS, tables)


def draw(paper: Paper, out: Path, tables: Tables) -> None:
    """Write the figures of finished tables to a folder."""
    from PIL import Image

    for name, figure in figures(paper, tables):
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=110, format="png")
        small = Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE)  # a third of the bytes
        with replacing(out / f"{name}.png") as part:
            small.save(part, "PNG", optimize=True)


def judge(paper: Paper, out: Path, tables: Tables, recipe: Any) -> pd.DataFrame:
    """Write the claims to a folder, judged from finished tables; returns them."""
    claims = evaluate(paper.CLAIMS, tables, dataclasses.replace(recipe, seeds=len(by_seed(tables))))
    write_file(out / "claims.csv", claims.to_csv(index=False))
    return claims


def read_kept(folder: Path) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """A finished run: its `run.json`, and its tables by name, with a column `seed` where there are several."""
    run = json.loads((folder / "run.json").read_text())
    work, paper = Work(folder), script(run["paper"])
    seeds = 1 + len(list(folder.glob("seed-*")))
    parts = [_tables(part.out) for part in work.by_seed(seeds)]
    return run, of_seeds([parts[0], *(part for part in parts[1:] if part.keys() >= set(paper.TABLES))], paper.ONCE)


def read_table(path: Path) -> pd.DataFrame:
    """A table that a run keeps.

    Raises
    ------
    EexError
        If the file is damaged.
    """
    try:
        return pd.read_csv(path)
    except ValueError as error:  # what pandas and the decoder raise
        reason = str(error).strip().partition("\n")[0]
        raise EexError(f"{path}: not a table ({reason}); {ANEW}") from None


def _read_tensors(path: Path) -> "dict[str, Tensor]":
    from eex.models.state import read_state

    try:
        return read_state(path)
    except EexError as error:
        raise EexError(f"{error}; {ANEW}") from None


def _tables(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables in a folder, by name."""
    return {path.stem: read_table(path) for path in sorted(folder.glob("*.csv")) if path.stem != "claims"}


def of_seeds(parts: Sequence[dict[str, pd.DataFrame]], once: Sequence[str] = ()) -> dict[str, pd.DataFrame]:
    """The tables that each seed has, or the first alone, together, with a column `seed` where there are several."""
    if len(parts) == 1:
        return parts[0]
    having = {name: parts[:1] if name in once else parts for name in parts[0]}
    return {
        name: pd.concat([part[name].assign(seed=k) for k, part in enumerate(found)])
        for name, found in having.items()
        if all(name in part for part in found)
    }


def plain(recipe: Any) -> dict[str, Any]:
    """A recipe as `run.json` has it: without the number of seeds, since a run may go on with more of them."""
    settings: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe)))
    del settings["seeds"]
    return settings


def follows(kept: dict[str, Any], recipe: Any) -> bool:
    """Whether a kept run's settings are a recipe's; those that are younger than the run had their defaults."""
    younger = {f.name: f.default for f in dataclasses.fields(recipe) if f.name not in kept}
    if dataclasses.MISSING in younger.values() or not kept.keys() <= {*plain(recipe), "seeds"}:
        return False
    usual = plain(dataclasses.replace(recipe, **younger))
    return plain(recipe) == usual | {name: kept[name] for name in usual if name in kept}


@dataclass(frozen=True)
class Images:
    """Images that a script trains and measures on: uint8 (N, C, H, W) and classes (N,).

    `validation` is held out from the training split; no training and no rule of a policy is chosen on `test`.
    """

    classes: tuple[str, ...]
    train: "tuple[Tensor, Tensor]"
    validation: "tuple[Tensor, Tensor]"
    test: "tuple[Tensor, Tensor]"

    def of(self, *classes: str) -> "Images":
        """The images of some classes, which are numbered anew.

        Raises
        ------
        EexError
            If there is no such class.
        """
        import torch

        if strange := [c for c in classes if c not in self.classes]:
            raise EexError(f"the images have no class {' or '.join(strange)}, but {', '.join(self.classes)}")
        numbers = [self.classes.index(c) for c in classes]

        def part(images: "Tensor", labels: "Tensor") -> "tuple[Tensor, Tensor]":
            kept = torch.isin(labels, torch.tensor(numbers))
            anew = torch.zeros(len(self.classes), dtype=torch.int64)
            anew[numbers] = torch.arange(len(numbers))
            return images[kept], anew[labels[kept]]

        return Images(classes, part(*self.train), part(*self.validation), part(*self.test))

    def counts(self) -> Iterator[dict[str, Any]]:
        """How many images each split has."""
        for split in ("train", "validation", "test"):
            yield {"split": split, "images": len(getattr(self, split)[1])}

    def drawn(self, most: int = 0) -> Ints:
        """So many of the test images, which lie class by class, in an order drawn once and for all; 0 = all."""
        order = np.random.default_rng(0).permutation(len(self.test[1]))
        return order[: most or len(order)]

    def frames(self, most: int = 0) -> "tuple[Tensor, Tensor]":
        """Test images as floats in [0, 1], and their classes, as `drawn`."""
        images, labels = (part[self.drawn(most)] for part in self.test)
        return images.float() / 255, labels


@dataclass(frozen=True)
class Training:
    """A training that is not done yet: its name, and those of the trainings whose networks it builds on."""

    name: str
    needs: Sequence[str]
    net: "EarlyExitNet"
    images: Images
    recipe: "Recipe"
    given: dict[str, Any]  # further arguments of `eex.models.training.fit`


def nothing(training: Training) -> bool:
    """Do nothing instead of a training, which is done."""
    return False


def unreported(name: str) -> Callable[[Any], None]:
    """Progress bars that are not there."""
    return lambda progress: None


@dataclass(frozen=True)
class Work:
    """Where a script works: what is finished is kept in its folder and not done again.

    Tables (CSV), figures (PNG) and `run.json` lie in the folder itself; weights, checkpoints, logits and parts of
    tables in `work/`.
    """

    out: Path
    data: str = "sample"  # images with a train and a test split, for `open_source`; "sample" for the shipped ones
    size: int = 0  # scale and crop images to this side; 0 = as they are
    device: str = "cpu"  # to train and measure on
    threads: int = 0
    seed: int = 0  # of every training, and of what policies and links draw; images are always held out alike
    quiet: bool = False  # no progress bars
    weights: Path | None = None  # published weights to start from, where a script can
    published: Path | None = None  # folder of a paper's own results, where it published any
    instead: Callable[[Training], bool] = nothing  # True: the training is not to be done
    bars: Callable[[str], Any] = unreported
    first: bool = True  # of the seeds

    def begin(self, name: str, recipe: Any, *, only_look: bool = False) -> None:
        """Make the folder, or continue in it; or `only_look` whether one could.

        Raises
        ------
        EexError
            If it holds another run, or cannot be written to.
        """
        run = {
            "paper": name,
            "version": VERSION,
            "recipe": plain(recipe),
            "data": Path(self.data).name,
            "size": self.size,
            "seed": self.seed,
            "weights": self.weights and self.weights.name,
            "published": self.published and self.published.name,
        }
        path = self.out / "run.json"
        try:
            # a mistyped source or file ends a run before anything is made: that folder is still free
            if path.exists() and any(made.is_file() for made in self.out.rglob("*") if made != path):
                kept = json.loads(path.read_text())
                if kept.get("version") != VERSION:
                    raise EexError(f"{self.out}: holds a run of an older version; choose another folder with --out")
                of_authors = any((self.out / f"{table}.csv").exists() for table in script(name).OF_AUTHORS)
                theirs = kept.get("published") if of_authors else None
                run |= {"recipe": kept["recipe"], "published": run["published"] or theirs}  # need not be given again
                before = {**kept, "published": theirs or run["published"]}  # and may be given later
                if before != run or not follows(kept["recipe"], recipe):
                    raise EexError(f"{self.out}: holds a run with other settings; choose another folder with --out")
            if not only_look:
                (self.out / "work").mkdir(parents=True, exist_ok=True)
                write_file(path, json.dumps(run, indent=1) + "\n")
        except EexError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EexError(f"{path}: cannot be used: {error}; choose another folder with --out") from None

    def by_seed(self, seeds: int) -> "Iterator[Work]":
        """Where each seed's tables and networks are kept: the first in the folder itself, the others in their own."""
        yield self
        for k in range(1, seeds):
            yield dataclasses.replace(self, out=self.out / f"seed-{k}", seed=self.seed + k, first=False)

    def images(self, validation: int) -> Images:
        """The images, with this many of the training split held out, or a tenth of it if that is fewer.

        Of the shipped images as many as `SAMPLED` says, the test images in equal parts from each class.

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
            raise EexError(f"{self.data}: expected labelled images, in one folder per class, in train/ and test/")
        pixels, labels, _ = load_all(train)
        unseen, truth, _ = load_all(test)
        order, tested = np.random.default_rng(0).permutation(len(pixels)), np.arange(len(unseen))
        if sample:
            order, tested = (
                order[: SAMPLED["train"]],
                np.linspace(0, len(unseen), SAMPLED["test"], endpoint=False).astype(int),
            )
        held_out = min(validation, len(order) // 10)
        held, kept = order[:held_out], order[held_out:]
        return Images(
            train.classes,
            (torch.from_numpy(pixels[kept]), torch.from_numpy(labels[kept])),
            (torch.from_numpy(pixels[held]), torch.from_numpy(labels[held])),
            (torch.from_numpy(unseen[tested]), torch.from_numpy(truth[tested])),
        )

    def table(self, name: str, make: Callable[[], pd.DataFrame | Iterable[dict[str, Any]]]) -> pd.DataFrame:
        """The table of this name, made if it is not there yet."""
        path = self.out / f"{name}.csv"
        if not path.exists():
            write_file(path, pd.DataFrame(make()).to_csv(index=False, float_format="%.6g"))
        return read_table(path)

    def kept_table(self, name: str, make: Callable[[], pd.DataFrame | Iterable[dict[str, Any]]]) -> pd.DataFrame:
        """A part of a table that takes long, kept in `work/`, so that an interrupted run goes on after it."""
        return dataclasses.replace(self, out=self.out / "work").table(name, make)

    def tables(self, **make: Callable[[], pd.DataFrame | Iterable[dict[str, Any]]]) -> dict[str, pd.DataFrame]:
        """The tables of these names, made one after another if they are not there yet."""
        return {name: self.table(name, each) for name, each in make.items()}

    def trained(
        self, name: str, make: "Callable[[], EarlyExitNet]", images: Images, **recipe: Any
    ) -> "tuple[EarlyExitNet, pd.DataFrame]":
        """The network that `make` initialises from the run's seed, trained, and its epochs (`train`)."""
        import torch

        torch.manual_seed(self.seed)
        net = make()
        return net, self.train(name, net, images, **recipe)

    def train(
        self,
        name: str,
        net: "EarlyExitNet",
        images: Images,
        *,
        expert: str = "",
        distort: "Distort | None" = None,
        needs: Sequence[str] = (),
        **recipe: Any,
    ) -> pd.DataFrame:
        """Train a network in place, or load what was trained; returns one row per epoch.

        The rows have phase, epoch, loss, validation_loss, seconds and the validation accuracy of each exit
        (`accuracy_1` …). `recipe` are arguments of `eex.models.training.Recipe`; `needs` names the trainings that come
        before.
        """
        from eex.models.network import PRISTINE
        from eex.models.training import Recipe, fit

        settings = Recipe(**recipe, seed=self.seed)
        net.to(self.device)
        weights, epochs = self.out / "work" / f"{name}.safetensors", self.out / "work" / f"{name}.csv"
        if weights.exists() and epochs.exists():
            try:
                net.load_state_dict(_read_tensors(weights))
            except RuntimeError:
                raise EexError(f"{weights}: weights of another network; {ANEW}") from None
            net.eval()
            return read_table(epochs)
        same: dict[str, Any] = {"expert": expert or PRISTINE, "distort": distort}
        if self.instead(Training(name, needs, net, images, settings, same)):
            return pd.DataFrame()
        checkpoint = self.out / "work" / f"{name}.checkpoint"
        history = fit(
            net,
            *images.train,
            settings,
            **same,
            validation=images.validation,
            checkpoint=checkpoint,
            source=name,
            report=self.bars(name),
        )
        rows = []
        for row in history:
            accuracy = row.pop("accuracy", ())
            rows.append(row | {f"accuracy_{e + 1}": a for e, a in enumerate(accuracy)})
        save_tensors(weights, {k: v.cpu().contiguous() for k, v in net.state_dict().items()})
        write_file(epochs, pd.DataFrame(rows).to_csv(index=False))
        checkpoint.unlink(missing_ok=True)
        return pd.DataFrame(rows)

    def kept(self, name: str, make: "Callable[[], Tensor]") -> "Tensor":
        """The tensor of this name, made if it is not there yet."""
        path = self.out / "work" / f"{name}.safetensors"
        if not path.exists():
            save_tensors(path, {"kept": make().contiguous()})
        return _read_tensors(path)["kept"]

    def logits(self, name: str, net: "EarlyExitNet", images: "Tensor", distort: "Distort | None" = None) -> "Tensor":
        """A network's logits for uint8 images, (exits, N, K), kept under this name."""
        from eex.models.training import all_logits

        return self.kept(name, lambda: all_logits(net, images, distort=distort))

    def exported(self, name: str, net: "EarlyExitNet", partition: int = 0) -> "tuple[Path, EarlyExitNet]":
        """The folder of a saved model for worker processes, and the network as loaded from it, made fast."""
        from eex.models.card import load, save
        from eex.models.fast import optimised

        folder = self.out / "work" / name
        save(net, folder, name=name)
        saved = load(folder)
        saved.partition = partition or saved.partition
        return folder, optimised(saved)


def step_seconds(training: Training) -> float:
    """Processor seconds that a training takes, by `STEPS` steps of each phase, done on a copy of the network.

    The median of the steps, of all threads together, so that other programs on the machine do not count.
    """
    from eex.models.training import Progress, fit

    ends: dict[str, list[float]] = {}

    def report(progress: Progress) -> None:
        ends.setdefault(progress.phase, []).append(time.process_time())

    (images, labels), recipe = training.images.train, training.recipe
    few = STEPS * recipe.batch
    once = dataclasses.replace(recipe, epochs=1, patience=0)
    fit(copy.deepcopy(training.net), images[:few], labels[:few], once, report=report, **training.given)
    steps = recipe.epochs * max(1, len(images) // recipe.batch)
    return steps * sum(float(np.median(np.diff(at))) for at in ends.values())


def out_of_memory(error: Exception) -> bool:
    """Whether this is how Python or torch reports that memory ran out."""
    return isinstance(error, MemoryError) or any(m in str(error).lower() for m in MEMORY)


def save_tensors(path: Path, tensors: "dict[str, Tensor]") -> None:
    """Replace a file of tensors whole."""
    from safetensors.torch import save_file

    with replacing(path) as part:
        save_file(tensors, part)


def confidences(logits: "Tensor", temperatures: Sequence[float] = ()) -> tuple[Floats, Ints]:
    """Confidence and prediction of every exit, each (N, exits), from logits (exits, N, K)."""
    import torch

    divisors = torch.tensor(temperatures or [1.0] * len(logits), dtype=torch.float64)[:, None, None]
    top = torch.softmax(logits.double() / divisors, dim=2).max(dim=2)
    return top.values.T.numpy(), top.indices.T.numpy()


def routed(policy: Policy, confidence: Floats, prediction: Ints) -> tuple[Ints, Ints, Ints]:
    """Where each frame leaves, its answer, and the edge exits that it visited, all (N,), with a policy that is fixed.

    Parameters
    ----------
    confidence, prediction
        Of every exit, (N, exits).
    """
    chosen = policy.choose(Context(frames=len(confidence)))
    went = step(confidence, chosen.exit_at[0], chosen.skip_below[0], overhead=0.0)
    known, predicted = seen(confidence, prediction, went.visited, went.replied)
    return went.exit, answer(known, predicted, went.exit, chosen.exit_at[0, :, -1]), went.visited


def condition_name(kind: str, level: float) -> str:
    """A distortion in words.

    >>> condition_name("pristine", 0), condition_name("gaussian_blur", 1.5)
    ('pristine', 'blur 1.5')
    """
    return kind if kind == "pristine" else f"{kind.removeprefix('gaussian_')} {level:g}"


def mean_of(values: Any) -> float:
    """Mean of numbers or booleans; NaN where there are none."""
    return float(np.mean(values)) if len(values) else float("nan")


def difference(a: Any, b: Any) -> tuple[float, float]:
    """Mean of a - b over the same images, (N,) each, and half its 95 % interval; NaN where either is unknown.

    Examples
    --------
    >>> mean, half = difference([True, True, True, False], [True, False, False, False])
    >>> mean, round(half, 3)
    (0.5, 0.566)
    """
    apart = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    return float(apart.mean()), float(1.96 * apart.std(ddof=1) / len(apart) ** 0.5)


def among(right: Bools, chosen: Bools) -> Floats:
    """What each image adds to the share of right ones among the chosen, (N,): the mean of it is that share.

    Its spread over the images is that of the share, so that shares of different images can be subtracted image by image
    (`difference`). NaN if none is chosen.

    References
    ----------
    Cochran (1977), Sampling techniques, chapter 6: the ratio estimator, linearised.

    Examples
    --------
    >>> float(among(np.array([True, False, True]), np.array([True, True, False])).mean())
    0.5
    """
    if not chosen.any():
        return np.full(len(chosen), np.nan)
    share = right[chosen].mean()
    found: Floats = share + chosen * (right - share) / chosen.mean()
    return found


def intervals(rows: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """Means of a column by others, with `half`, the half-widths of their 95 % intervals (0 for one value)."""
    found = rows.groupby(list(by), sort=False)[value].agg(lambda v: seeds_interval(list(v))).reset_index()
    halves = [0.0 if np.isnan(half) else half for _, half in found[value]]
    return found.assign(**{value: [mean for mean, _ in found[value]], "half": halves})


def long(rows: pd.DataFrame, keep: Sequence[str], columns: Sequence[str] | dict[str, str]) -> pd.DataFrame:
    """One row per value of some columns: what is kept, `quantity` (the column, or its name in the figure), `value`."""
    melted = rows.melt(list(keep), list(columns), "quantity", "value")
    return melted.replace({"quantity": columns}) if isinstance(columns, dict) else melted
