"""Expert branches: side branches fine-tuned for a kind of distortion, chosen by a classifier (Pacheco et al.)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eex.experiments.papers.paper import Claim, Images, Work, confidences, seeds_interval
from eex.experiments.plotting import paper_figure
from eex.policies.algorithms.fixed import Fixed
from eex.policies.core.base import Context, Floats, Ints
from eex.policies.core.errors import EexError
from eex.policies.core.routing import answer, route

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from eex.models.network import EarlyExitNet
    from eex.models.training import Distort

TITLE = "Pacheco, Oliveira, Couto (2021): Early-exit deep neural networks for distorted images"
BLUR, NOISE, MIXTURE = "gaussian_blur", "gaussian_noise", "mixture"
LEVELS: dict[str, tuple[float, ...]] = {BLUR: (0, 1, 2, 3, 4, 5), NOISE: (0, 5, 10, 20, 30, 40)}
"""Blur in pixels, noise on the 0–255 scale (section IV-A)."""
MIXED = ((0.0, 0.0), (1.0, 5.0), (2.0, 10.0), (3.0, 20.0), (4.0, 30.0), (5.0, 40.0))
"""Blur, then noise, at the k-th level of each."""
P_TAR = 0.8
TARGETS = (0.7, 0.75, 0.8, 0.85, 0.9)
PUBLISHED = {  # expert and distortion that each published table is about
    ("gaussian_blur", BLUR): "blur-expert-on-blur.csv",
    ("gaussian_noise", NOISE): "noise-expert-on-noise.csv",
    ("pristine", BLUR): "pristine-on-blur.csv",
    ("pristine", NOISE): "pristine-on-noise.csv",
}
NOTES = """
- The paper's images are Caltech-256's at 224 pixels and its MobileNetV2 starts from ImageNet's weights. Without those
  at hand, the reduced recipe trains MobileNetV2 from scratch on CIFAR-10, scaled to 48 pixels so that the published
  blur levels blur and do not erase: ten classes instead of 257, so all accuracies lie higher and nothing is comparable
  but the shape of the curves. `--data …/256_ObjectCategories --recipe paper --weights mobilenet_v2.safetensors` is the
  paper's own setting.
- Decoupled weight decay (AdamW), and none on norms and biases.
- Latencies are measured frame by frame through the engine and a real worker process behind an emulated link; the
  paper's edge had a GPU and its cloud was Amazon's, so only the order of the curves can be compared. The standard model
  runs without the distortion classifier.
- Mixtures (blur, then noise) are the paper's future work: an expert and a class of the classifier of their own.
"""


@dataclass(frozen=True)
class Recipe:
    """How much is trained and measured.

    Parameters
    ----------
    epochs, expert_epochs, classifier_epochs
        Passes over the images for the pristine network, for each expert's branches, for the distortion classifier.
    optimizer, lr, stage_lr, schedule, batch, patience
        Of the pristine network; `stage_lr` for what comes pre-trained.
    expert_lr, expert_batch
        Of the experts.
    size
        Side that images are scaled to, unless --size says otherwise.
    validation
        Images held out.
    timed
        Images whose latency is measured for each link, level and model.
    links
        Between edge and cloud.
    timed_levels
        Of each distortion, by their number.
    """

    epochs: int
    expert_epochs: int
    classifier_epochs: int
    optimizer: str = "sgd"
    lr: float = 0.1
    stage_lr: float = 0.0
    schedule: str = "one-cycle"
    batch: int = 128
    patience: int = 0
    expert_lr: float = 0.03
    expert_batch: int = 128
    size: int = 64
    validation: int = 2500
    timed: int = 60
    links: tuple[str, ...] = ("sao-paulo", "north-california", "paris")
    timed_levels: tuple[int, ...] = (0, 1, 2, 3, 5)


RECIPES = {
    "quick": Recipe(1, 1, 1, size=32, batch=64, expert_batch=64, timed=4, links=("sao-paulo",), timed_levels=(2,)),
    "reduced": Recipe(6, 1, 2, size=48, timed=40),
    "paper": Recipe(
        100, 100, 20, "adam", 0.01, 0.0015, "cosine", 32, 10, 0.01, 32, 224, 3000, 400, timed_levels=(0, 1, 2, 3, 4, 5)
    ),
}


def run(work: Work, recipe: Recipe) -> list[Claim]:
    """Train MobileNetV2, its experts and the classifier; measure accuracy, device probability and latency."""
    import dataclasses

    work = dataclasses.replace(work, size=work.size or recipe.size)
    images = work.images(recipe.validation)
    net = _trained(work, recipe, images)
    exits = work.rows("exits", lambda: _exits(work, net, images))
    recalls = work.rows("classifier", lambda: _recalls(net, images))
    selected = exits[exits["expert"] == "selected"]
    latency = work.rows("latency", lambda: _latency(work, recipe, net, images))
    published = read_published(work.published)
    _draw(work, exits, latency, published)
    return _claims(exits, selected, recalls, latency, published)


# ---- training


def mixture(images: "Tensor", generator: "torch.Generator") -> "Tensor":
    """Each image blurred, then noisy, at levels drawn uniformly: (B, C, H, W) in [0, 1]."""
    from eex.stream.frames.distortions import random_distortion

    blurred = random_distortion(BLUR, LEVELS[BLUR][1], LEVELS[BLUR][-1])(images, generator)
    return random_distortion(NOISE, LEVELS[NOISE][1], LEVELS[NOISE][-1])(blurred, generator)


def distortions() -> "dict[str, Distort]":
    """What each expert is trained on: U(1, 5) and U(5, 40), section V, and mixtures of both."""
    from eex.stream.frames.distortions import random_distortion

    found: dict[str, Distort] = {kind: random_distortion(kind, LEVELS[kind][1], LEVELS[kind][-1]) for kind in LEVELS}
    return found | {MIXTURE: mixture}


def _trained(work: Work, recipe: Recipe, images: Images) -> "EarlyExitNet":
    """The pristine network, its experts on the frozen backbone, calibrated, with the distortion classifier."""
    import torch

    from eex.models.calibration import calibrate
    from eex.models.network import PRISTINE, load_torchvision_mobilenet, make
    from eex.models.spectrum import DistortionClassifier, fit_classifier
    from eex.models.training import Recipe as Training

    torch.manual_seed(work.seed)
    published = work.weights is not None
    # published weights are for images normalised so
    pixels: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)} if published else {}
    net = make(
        "mobilenet_v2",
        images.classes,
        shares=(0.25, 0.5, 0.75),
        structure="pool_fc",
        input_shape=(3, work.size, work.size),
        small_images=False,
        **pixels,
    )
    if work.weights is not None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            load_torchvision_mobilenet(net, load_file(work.weights))
        except (SafetensorError, OSError, ValueError) as error:
            raise EexError(f"{work.weights}: expected torchvision's mobilenet_v2 as safetensors: {error}") from None
    training = Training(
        epochs=recipe.epochs,
        optimizer=recipe.optimizer,  # type: ignore[arg-type]
        lr=recipe.lr,
        stage_lr=recipe.stage_lr if published else 0.0,
        schedule=recipe.schedule,  # type: ignore[arg-type]
        batch=recipe.batch,
        patience=recipe.patience,
        seed=work.seed,
    )
    work.trained("pristine", net, images.train, training, validation=images.validation)
    expert = Training(
        method="expert",
        epochs=recipe.expert_epochs,
        optimizer=training.optimizer,
        lr=recipe.expert_lr,
        schedule=training.schedule,
        batch=recipe.expert_batch,
        patience=recipe.patience,
        seed=work.seed,
    )
    for kind, distort in distortions().items():
        net.add_expert(kind)
        work.trained(kind, net, images.train, expert, validation=images.validation, expert=kind, distort=distort)
    temperatures = work.kept("temperatures", lambda: _temperatures(net, images, calibrate, PRISTINE))
    for i, row in enumerate(temperatures.tolist()):
        net.temperature[i] = dict(zip(net.experts, row, strict=True))
    torch.manual_seed(work.seed)
    classifier = DistortionClassifier(net.experts).to(work.device)

    def learn() -> "Tensor":
        fit_classifier(
            classifier,
            images.train[0],
            distortions(),
            epochs=recipe.classifier_epochs,
            seed=work.seed,
            report=work.bars("classifier"),
        )
        return torch.cat([v.double().flatten() for v in classifier.state_dict().values()])

    flat, state, at = work.kept("classifier", learn), classifier.state_dict(), 0
    for name, value in state.items():
        state[name] = flat[at : at + value.numel()].reshape(value.shape).to(value.dtype)
        at += value.numel()
    classifier.load_state_dict(state)
    classifier.eval()
    net.classifier = classifier
    return net


def _temperatures(net: "EarlyExitNet", images: Images, calibrate: Callable[..., object], pristine: str) -> "Tensor":
    """Each expert calibrated on validation images with its own distortion: (exits, experts)."""
    import torch

    calibrate(net, *images.validation, pristine)
    for kind, distort in distortions().items():
        calibrate(net, *images.validation, kind, distort)
    return torch.tensor([[net.temperature[i][e] for e in net.experts] for i in range(net.exits)])


# ---- what every exit says


def conditions() -> list[tuple[str, int, tuple[float, float]]]:
    """What test images suffer: kind, number of the level, (blur, noise)."""
    found: list[tuple[str, int, tuple[float, float]]] = []
    for k, level in enumerate(LEVELS[BLUR]):
        found.append((BLUR, k, (level, 0.0)))
    for k, level in enumerate(LEVELS[NOISE]):
        found.append((NOISE, k, (0.0, level)))
    return found + [(MIXTURE, k, levels) for k, levels in enumerate(MIXED)]


def distorted(images: "Tensor", levels: tuple[float, float], first: int = 0) -> "Tensor":
    """uint8 images (N, C, H, W) as floats, blurred and noisy at these levels."""
    import torch

    from eex.stream.frames.distortions import distort

    both = torch.tensor([levels], dtype=torch.float64).expand(len(images), 2)
    return distort(images.float() / 255, both, torch.arange(first, first + len(images)), 0)


def _exits(work: Work, net: "EarlyExitNet", images: Images) -> pd.DataFrame:
    """For each condition, expert and p_tar: accuracy overall and at each exit, and where images leave.

    The expert "selected" is the distortion classifier's choice, image by image.
    """
    parts = []
    for kind, k, levels in conditions():
        name = f"said-{kind}-{k}"
        said = work.kept(name, lambda levels=levels: _logits(net, images.test[0], levels))  # type: ignore[misc]
        parts.append(_routes(kind, k, levels, said, images.test[1].numpy(), net.experts))
    return pd.concat(parts, ignore_index=True)


def _logits(net: "EarlyExitNet", images: "Tensor", levels: tuple[float, float]) -> "Tensor":
    """Calibrated logits of every expert and the classifier's: (experts · exits + 1, N, classes or more).

    The backbone runs once for all experts. The last row holds the classifier's logits, padded with -inf.
    """
    import torch

    from eex.models.training import use_bf16

    device = net.mean.device
    rows: list[list[Tensor]] = [[] for _ in range(len(net.experts) * net.exits + 1)]
    width = max(len(net.classes), len(net.experts))
    assert net.classifier is not None
    net.eval()
    half = use_bf16("auto", device)
    with torch.inference_mode():
        for at in range(0, len(images), 250):
            x = distorted(images[at : at + 250], levels, at).to(device)
            outputs = [net.classifier(x)]
            x = x.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
                for i in range(net.exits):
                    x = net.stage(i, x)
                    outputs += [net.branch(i, e, x) for e in net.experts]
            for row, out in zip(rows, [*outputs[1:], outputs[0]], strict=True):
                out = out.float().cpu()
                row.append(torch.nn.functional.pad(out, (0, width - out.shape[1]), value=-math.inf))
    return torch.stack([torch.cat(row) for row in rows])


def _routes(
    kind: str, k: int, levels: tuple[float, float], said: "Tensor", label: Ints, experts: Sequence[str]
) -> pd.DataFrame:
    exits = (len(said) - 1) // len(experts)
    by_expert = {}
    for e, expert in enumerate(experts):  # rows are exit by exit, expert by expert
        by_expert[expert] = confidences(said[:-1].reshape(exits, len(experts), *said.shape[1:])[:, e])
    chosen = said[-1].argmax(dim=1).numpy()
    picked = [np.empty_like(part) for part in by_expert[experts[0]]]
    for e, expert in enumerate(experts):
        for whole, part in zip(picked, by_expert[expert], strict=True):
            whole[chosen == e] = part[chosen == e]
    by_expert["selected"] = (picked[0], picked[1])
    rows = []
    for expert, (confidence, prediction) in by_expert.items():
        for p_tar in TARGETS:
            rows.append(
                {"distortion": kind, "number": k, "blur": levels[0], "noise": levels[1], "expert": expert}
                | at_threshold(confidence, prediction, label, p_tar)
            )
    return pd.DataFrame(rows)


def at_threshold(confidence: Floats, prediction: Ints, label: Ints, p_tar: float) -> dict[str, float]:
    """Accuracy and shares when images leave at the first exit that reaches p_tar, the last below it answered by the
    most confident exit (section III).

    Parameters
    ----------
    confidence, prediction
        Of every exit, (N, exits).

    Returns
    -------
    dict
        `accuracy`, `device` (share answered on the edge), and for each exit from 1 `share_k` and `accuracy_k` of what
        leaves there (NaN where nothing does).
    """
    exits = confidence.shape[1]
    chosen = Fixed(p_tar, exits=exits - 1).choose(Context(frames=len(confidence)))
    exit, offloaded, visited = route(confidence, chosen)
    seen = np.arange(exits) < visited[:, None]
    seen[:, -1] = offloaded
    said = answer(np.where(seen, confidence, np.nan), prediction, exit, chosen.exit_at[0, :, -1])
    right = said == label
    found = {"p_tar": p_tar, "accuracy": float(right.mean()), "device": float(1 - offloaded.mean())}
    for e in range(exits):
        here = exit == e
        found[f"share_{e + 1}"] = float(here.mean())
        found[f"accuracy_{e + 1}"] = float(right[here].mean()) if here.any() else math.nan
    return found


def _recalls(net: "EarlyExitNet", images: Images) -> pd.DataFrame:
    """Which kind the classifier takes each condition for: shares."""
    import torch

    assert net.classifier is not None
    rows = []
    for kind, k, levels in conditions():
        with torch.inference_mode():
            told = torch.cat(
                [
                    net.classifier(distorted(images.test[0][at : at + 500], levels, at).to(net.mean.device)).argmax(1)
                    for at in range(0, len(images.test[0]), 500)
                ]
            ).cpu()
        shares = {f"as_{e}": float((told == n).double().mean()) for n, e in enumerate(net.experts)}
        rows.append({"distortion": kind, "number": k, "blur": levels[0], "noise": levels[1]} | shares)
    return pd.DataFrame(rows)


# ---- latency


def _latency(work: Work, recipe: Recipe, net: "EarlyExitNet", images: Images) -> pd.DataFrame:
    """Milliseconds from image to answer, one image after the other, through a worker process behind each link."""
    from eex.experiments.papers.live import cloud, play
    from eex.models.card import load, save
    from eex.models.fast import optimised

    model = work.out / "work" / "model"
    save(net, model, name="expert-branches")
    saved = load(model)
    ours = optimised(saved)
    standard = optimised(load(model))
    standard.classifier = None  # every image goes to the first expert, pristine
    rng = np.random.default_rng(work.seed)
    picked = rng.permutation(len(images.test[0]))[: recipe.timed]
    pixels, labels = images.test[0][picked], images.test[1][picked]
    rows = []
    for link in recipe.links:
        with cloud(model, saved.fingerprint, link) as offloader:
            for name, fast in (("expert", ours), ("standard", standard)):
                policy = Fixed(P_TAR, exits=fast.edge_exits)
                play(fast, Fixed(1.0, exits=fast.edge_exits), pixels[:2].float() / 255, labels[:2], offloader=offloader)
                for kind, k, levels in conditions():
                    if kind == MIXTURE or k not in recipe.timed_levels:
                        continue
                    seen = distorted(pixels, levels)
                    found, _ = play(fast, policy, seen, labels, offloader=offloader, batch=1, one_by_one=True)
                    mean, half = seeds_interval(found.latency_ms.tolist())
                    rows.append(
                        {
                            "link": link,
                            "model": name,
                            "distortion": kind,
                            "level": LEVELS[kind][k],
                            "latency_ms": mean,
                            "half": half,
                            "edge_ms": float(found.edge_ms.mean()),
                            "offloaded": float(found.offloaded.mean()),
                            "accuracy": float((found.answer == found.label).mean()),
                        }
                    )
    return pd.DataFrame(rows)


# ---- what is shown


def read_published(folder: Path | None) -> pd.DataFrame:
    """The published results per expert, distortion, level and p_tar; empty without their folder.

    Raises
    ------
    EexError
        If a file cannot be used.
    """
    columns = ["expert", "distortion", "level", "p_tar", "accuracy", "device", "accuracy_3"]
    parts = [pd.DataFrame(columns=columns)]
    for (expert, kind), name in PUBLISHED.items() if folder is not None else ():
        assert folder is not None
        try:
            rows = pd.read_csv(folder / name)
            part = {
                "expert": expert,
                "distortion": kind,
                "level": rows["distortion_lvl"],
                "p_tar": rows["p_tar"],
                "accuracy": rows["avg_acc"] / 100,
                "device": rows["edge_exit_rate_branch_3"] / 100,  # of all images, up to branch 3
                "accuracy_3": rows["acc_branch_3"] / 100,
            }
        except (OSError, KeyError, ValueError) as error:
            raise EexError(f"{folder / name}: not the published table (--published): {error}") from None
        parts.append(pd.DataFrame(part))
    return pd.concat([p for p in parts if len(p)] or parts, ignore_index=True)


def _draw(work: Work, exits: pd.DataFrame, latency: pd.DataFrame, published: pd.DataFrame) -> None:
    ours = exits[exits["p_tar"] == P_TAR].assign(source="ours")
    ours["level"] = np.where(ours["distortion"] == BLUR, ours["blur"], ours["noise"])
    theirs = published[published["p_tar"] == P_TAR].assign(source="published")
    both = pd.concat([ours, theirs]) if len(theirs) else ours
    single = both[both["distortion"] != MIXTURE]
    for number, quantity, title, level in (
        (3, "accuracy", "overall accuracy", None),
        (4, "accuracy_3", "accuracy of what leaves at the third branch", P_TAR),
        (5, "device", "share answered on the device", None),
    ):
        for kind in LEVELS:
            rows = single[single["distortion"] == kind]
            figure = paper_figure(
                rows,
                "level",
                quantity,
                "expert",
                title=f"Fig. {number}: {title}, p_tar = {P_TAR:g}",
                xlabel=f"{kind.replace('_', ' ')}, σ",
                ylabel=title,
                level=level,
            )
            work.draw(f"fig{number}-{quantity.replace('_', '-')}-{kind.split('_')[1]}", figure)
    mixed = ours[ours["distortion"] == MIXTURE].melt(["number", "expert"], ["accuracy", "device"], "quantity", "value")
    work.draw(
        "mixtures",
        paper_figure(
            mixed,
            "number",
            "value",
            "expert",
            "quantity",
            title="Mixtures: blur σ = k and noise σ = 5, 10, 20, 30, 40",
            xlabel="level",
            ylabel="share of images",
        ),
    )
    for kind in LEVELS:
        rows = latency[latency["distortion"] == kind]
        if len(rows):
            figure = paper_figure(
                rows,
                "level",
                "latency_ms",
                "model",
                "link",
                title="Fig. 6: end-to-end latency",
                xlabel=f"{kind.replace('_', ' ')}, σ",
                ylabel="ms",
            )
            work.draw(f"fig6-latency-{kind.split('_')[1]}", figure)


def _claims(
    exits: pd.DataFrame,
    selected: pd.DataFrame,
    recalls: pd.DataFrame,
    latency: pd.DataFrame,
    published: pd.DataFrame,
) -> list[Claim]:
    at = exits[exits["p_tar"] == P_TAR].set_index(["distortion", "number", "expert"])
    claims = []
    data = "other images, other classes: only the order is comparable"
    for kind, number, before, after in ((BLUR, 2, 38.2, 68.8), (NOISE, 3, 8.5, 53.9)):
        plain, expert = at["accuracy"][kind, number, "pristine"], at["accuracy"][kind, number, kind]
        claims.append(
            Claim(
                f"{kind.split('_')[1]} σ = {LEVELS[kind][number]:g}: the expert's overall accuracy is far above the "
                "pristine network's",
                f"{before:g} % becomes {after:g} %",
                f"{100 * plain:.1f} % becomes {100 * expert:.1f} %",
                bool(expert > plain + 0.05),
                data,
            )
        )
    for kind in LEVELS:
        name = kind.split("_")[1]
        rows = [(at["accuracy"][kind, k, kind], at["accuracy"][kind, k, "pristine"]) for k in range(1, 6)]
        above = sum(e > p for e, p in rows)
        other = NOISE if kind == BLUR else BLUR
        claims.append(
            Claim(
                f"the {name} expert beats the pristine network at every level of {name}",
                "all five levels",
                f"{above} of 5",
                above == 5,
            )
        )
        wins = sum(at["accuracy"][other, k, kind] < at["accuracy"][other, k, other] for k in range(1, 6))
        claims.append(
            Claim(
                f"and does worse than the other expert on the other distortion ({other.split('_')[1]})",
                "all five levels",
                f"{wins} of 5",
                wins == 5,
            )
        )
        third = pd.Series([at["accuracy_3"][kind, k, kind] for k in range(6)])  # NaN where nothing leaves there
        leaves = [f"{100 * at['share_3'][kind, k, kind]:.1f}" for k in range(6)]
        claims.append(
            Claim(
                f"the {name} expert's accuracy at the third branch stays above p_tar = 0.8 at every level",
                "above 0.8",
                f"{third.min():.3f} to {third.max():.3f}",
                bool(third.min() >= P_TAR),
                f"only {', '.join(leaves)} % of the images leave there, level by level: branch 2 has had the easy ones",
            )
        )
        devices = [(at["device"][kind, k, kind], at["device"][kind, k, "pristine"]) for k in range(1, 6)]
        more = sum(e > p for e, p in devices)
        expected = "all but blur 5" if kind == BLUR else "all levels"
        claims.append(
            Claim(
                f"the {name} expert answers more {name} images on the device than the pristine network",
                expected,
                f"{more} of 5 levels ({', '.join(f'{100 * e:.0f}/{100 * p:.0f} %' for e, p in devices)})",
                more >= (4 if kind == BLUR else 5),
                "a network that is sure and wrong answers much on the device, too: see its accuracy",
            )
        )
    pristine = {e: at["accuracy"][BLUR, 0, e] for e in ("pristine", BLUR, NOISE)}
    claims.append(
        Claim(
            "on pristine images the pristine network is the most accurate",
            "highest of the three",
            ", ".join(f"{e.split('_')[-1]} {100 * a:.1f} %" for e, a in pristine.items()),
            max(pristine, key=lambda e: pristine[e]) == "pristine",
        )
    )
    claims.append(_claim_of_latency(latency))
    shares = recalls[recalls["number"] > 0]
    right = [r[f"as_{r['distortion']}"] for r in shares.to_dict("records")]
    picked = selected[(selected["p_tar"] == P_TAR) & (selected["number"] > 0)]["accuracy"].mean()
    plain = exits[(exits["p_tar"] == P_TAR) & (exits["number"] > 0) & (exits["expert"] == "pristine")]["accuracy"]
    claims.append(
        Claim(
            "the distortion classifier selects the experts (all levels of blur, noise and mixtures)",
            "not published",
            f"{100 * np.mean(right):.1f} % of the images get their own; overall accuracy {100 * picked:.1f} %, "
            f"{100 * plain.mean():.1f} % without experts",
            bool(picked > plain.mean()),
        )
    )
    mixed = [(at["accuracy"][MIXTURE, k, MIXTURE], at["accuracy"][MIXTURE, k, "pristine"]) for k in range(1, 6)]
    best_single = [max(at["accuracy"][MIXTURE, k, BLUR], at["accuracy"][MIXTURE, k, NOISE]) for k in range(1, 6)]
    claims.append(
        Claim(
            "future work: branches trained on mixtures are more accurate on mixtures than either expert",
            "not published",
            "; ".join(
                f"{100 * m:.0f} % ({100 * s:.0f}, pristine {100 * p:.0f})"
                for (m, p), s in zip(mixed, best_single, strict=True)
            ),
            all(m > s for (m, _), s in zip(mixed, best_single, strict=True)),
        )
    )
    return claims


def _claim_of_latency(latency: pd.DataFrame) -> Claim:
    """Is our latency below the standard model's at the intermediate levels, over each link?"""
    middle = latency[
        ((latency["distortion"] == BLUR) & latency["level"].isin([2, 3]))
        | ((latency["distortion"] == NOISE) & latency["level"].isin([10, 20]))
    ]
    table = middle.pivot_table(index="link", columns="model", values="latency_ms", sort=False)
    accuracy = middle.groupby("model")["accuracy"].mean()
    return Claim(
        "end-to-end latency is lower with experts at every link, above all at intermediate levels",
        "lower over all three links",
        "; ".join(f"{link} {row['expert']:.0f} against {row['standard']:.0f} ms" for link, row in table.iterrows()),
        bool((table["expert"] < table["standard"]).all()),
        "what is answered on the device decides: the standard network answers more there, and much of it wrongly "
        f"(accuracy over these images {accuracy['standard']:.2f}, with experts {accuracy['expert']:.2f})",
    )
