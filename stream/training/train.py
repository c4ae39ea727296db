"""`eex-train` as a function: train a network, calibrate it, add experts and a classifier, and save weights and card."""

import dataclasses
from typing import TYPE_CHECKING, Any

from eex.policies.core.errors import EexError
from eex.policies.core.files import alone_in
from eex.stream.network import make_module, pick_device, takes_classes
from eex.stream.training.bars import Bars, training_bars
from eex.stream.training.data import Data, read_data
from eex.stream.training.options import TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from eex.models.network import EarlyExitNet
    from eex.models.training import Distort, Recipe, Teacher


def train(config: TrainConfig) -> dict[str, Any]:
    """Train a model as configured and save it; returns its measurements on the test split, if there is one.

    Raises
    ------
    EexError
        If the data, the network or the folder cannot be used.
    """
    config.check()
    made = _own_network(config)
    data = read_data(config, getattr(getattr(made, "architecture", None), "input_shape", None))
    # only now: torch takes seconds, and what is wrong above is reported at once
    import torch

    from eex.models.card import load, save
    from eex.models.fast import optimised
    from eex.models.spectrum import SMALLEST_SIDE
    from eex.models.training import taught
    from eex.stream.frames.sources import load_all
    from eex.stream.training.measuring import as_agreement, measure
    from eex.stream.training.networks import first_network, own_network, start_from, taught_classes

    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    if config.teach:
        made, classes = taught_classes(config, made, data)
        data = dataclasses.replace(data, classes=classes)
    own, cuts = own_network(config, made, data)
    net = first_network(config, own, data)
    if net.architecture.takes_images:
        side = min(net.architecture.input_shape[1:])
        for name in ("shift", "cutout"):
            if (pixels := getattr(config, name)) >= side:
                raise EexError(f"--{name} must be less than the side of the images, {side} pixels; got {pixels}")
        if config.expert_levels() and side < SMALLEST_SIDE:
            raise EexError(
                f"images of {side} pixels are too small to recognise distortions in, experts take {SMALLEST_SIDE} or "
                'more: train without them (--experts "")'
            )
    source = _source(config, net)
    net = net.to(pick_device(config.device))
    optimised(net)  # a form that cannot stream is refused before the hours of training
    task = _Task(config, net, data, source)
    if config.start:
        start_from(config.start, net, task.images)
    if config.teach:
        task.learn_from_final_exit()
    shares = "agreement" if config.teach else "validation"
    with alone_in(config.out), training_bars(config.quiet, [*data.notes, *cuts], shares) as bars:
        trained = task.run(bars)
        training = config.on_the_card() | trained
        save(net, config.out, name=config.name, training=training)
    if data.test is None and not (config.teach and config.measure):
        return {}
    net = load(config.out, str(net.mean.device), own)  # as it is stored: kernels in half precision
    if data.test is None:
        images, labels = task.validation
    else:
        images, labels = (torch.from_numpy(loaded) for loaded in load_all(data.test)[:2])
    if task.teacher is None:
        measured = measure(net, images, labels)
    else:
        measured = as_agreement(measure(net, images, taught(task.teacher, images).argmax(1)))
    save(net, config.out, name=config.name, training=training, measured=measured)
    return measured


def _own_network(config: TrainConfig) -> "nn.Module | None":
    """The network that --network names, unless its number of classes is still to be found out."""
    if not config.network or takes_classes(config.network):
        return None
    import torch

    torch.manual_seed(config.seed)  # its first weights are drawn when it is made
    return make_module(config.network, pretrained=config.pretrained)


def _source(config: TrainConfig, net: "EarlyExitNet") -> str:
    """What a training depends on besides recipe, images and code: the weights that it starts from."""
    from eex.models.card import read_card
    from eex.models.checkpoint import weights_digest

    source = f"{config.network} {weights_digest(net)} {[read_card(folder).sha256 for folder in config.start]}"
    if config.teach:
        source = f"{source} taught by the final exit"
    return f"{source} {config.mix} {config.mix_share}" if config.mix else source


class _Task:
    """A running training: the network, its images, and a recipe for each part.

    Parameters
    ----------
    source
        What else it depends on: it resumes only from checkpoints that were made with the same.
    """

    def __init__(self, config: TrainConfig, net: "EarlyExitNet", data: Data, source: str) -> None:
        import torch

        from eex.stream.frames.distortions import random_distortion, random_mixture

        self.config, self.net = config, net
        images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
        self.images, self.labels = images[data.kept], labels[data.kept]
        self.validation = images[data.held], labels[data.held]
        levels = config.expert_levels()
        self.distorts: dict[str, Distort] = {kind: random_distortion(kind, *levels[kind]) for kind in levels}
        self.mix = random_mixture(config.mix_levels(), config.mix_share) if config.mix else None
        self.recipe, self.expert_recipe = _recipes(config, net.exits)
        self.checkpoints = config.out / "training"
        self.source = source
        self.teacher: Teacher | None = None
        self.calibration = self.validation

    def learn_from_final_exit(self) -> None:
        """Make what the final exit answers now the labels, its confidence included: that is what is calibrated to."""
        from eex.models.training import taught, teacher_of

        self.teacher = teacher_of(self.net)
        self.labels = taught(self.teacher, self.images).argmax(1)
        probabilities = taught(self.teacher, self.validation[0])
        self.validation = self.validation[0], probabilities.argmax(1)
        self.calibration = self.validation[0], probabilities

    def run(self, bars: Bars) -> dict[str, Any]:
        """Train and calibrate every part; returns what the card records of it."""
        from eex.models.calibration import calibrate
        from eex.models.card import read_card
        from eex.models.network import PRISTINE
        from eex.models.training import evaluate

        config, net = self.config, self.net
        history = []
        if config.epochs:
            history = self._fit(PRISTINE, self.recipe, self.source, bars)
        score = evaluate(net, *self.validation)
        calibration = {PRISTINE: calibrate(net, *self.calibration, PRISTINE, self.mix)}
        for kind, distort in self.distorts.items():
            net.add_expert(kind)
            history += self._fit(kind, self.expert_recipe, config.experts, bars)
            calibration[kind] = calibrate(net, *self.calibration, kind, distort)
        if self.teacher is not None:
            for row in history:
                row["agreement"] = row.pop("accuracy", [])
        summary: dict[str, Any] = {
            "history": history,
            f"validation_{'agreement' if self.teacher else 'accuracy'}": list(score.accuracy),
            "validation_ece": calibration,
            "start": [read_card(folder).training for folder in config.start],
        }
        if self.distorts:
            summary["validation_recall"] = self._fit_classifier(bars)
        return summary

    def _fit(self, expert: str, recipe: "Recipe", source: str, bars: Bars) -> list[dict[str, Any]]:
        from eex.models.network import PRISTINE
        from eex.models.training import fit

        what = self.net, self.images, self.labels, recipe
        common: dict[str, Any] = {
            "expert": expert,
            "distort": self.mix if expert == PRISTINE else self.distorts[expert],
            "validation": self.validation,
            "teacher": self.teacher,
            "report": bars(expert),
        }
        if self.config.freeze:
            from eex.models.frozen import fit_frozen

            return fit_frozen(*what, **common)
        return fit(
            *what,
            **common,
            checkpoint=self.checkpoints / f"{expert}.safetensors",
            source=source,
            modules=[self.config.network.partition(":")[0]] if self.config.network else [],
        )

    def _fit_classifier(self, bars: Bars) -> dict[str, float]:
        """Train the distortion classifier, find out when it had better abstain, and add it to the network; returns its
        recall of each kind."""
        import torch

        from eex.models.network import PRISTINE
        from eex.models.spectrum import DistortionClassifier, fit_abstention, fit_classifier, recall

        config = self.config
        torch.manual_seed(config.seed)
        classifier = DistortionClassifier((PRISTINE, *self.distorts)).to(self.net.mean.device)
        fit_classifier(
            classifier,
            self.images,
            self.distorts,
            epochs=config.classifier_epochs,
            seed=config.seed,
            report=bars("classifier"),
        )
        self.net.classifier = classifier
        self.net.abstain_below = fit_abstention(classifier, self.validation[0], self.distorts)
        return recall(classifier, self.validation[0], self.distorts, abstain_below=self.net.abstain_below)


def _recipes(config: TrainConfig, exits: int) -> "tuple[Recipe, Recipe]":
    """Recipes for the network and for its experts."""
    from eex.models.training import Recipe

    optimizer, rates = config.optimizing()
    recipe = Recipe(
        method=config.method,
        epochs=max(1, config.epochs),
        loss_weights=config.weights_of_losses(exits),
        optimizer=optimizer,
        lr=rates.lr,
        stage_lr=rates.lr / 100 if config.stage_lr is None and config.teach else config.stage_lr,
        weight_decay=rates.weight_decay,
        schedule=config.schedule,
        batch=config.batch,
        patience=config.patience,
        shift=config.shift,
        cutout=config.cutout,
        distorted_share=1.0 if config.mix else Recipe.distorted_share,  # a mixture leaves some images as they are
        precision=config.precision,
        seed=config.seed,
    )
    expert = dataclasses.replace(
        recipe,
        method="expert",
        epochs=config.expert_epochs,
        lr=rates.expert_lr,
        loss_weights=(1.0,) * exits,
        distorted_share=Recipe.distorted_share,
        cutout=0,
    )
    return recipe, expert
