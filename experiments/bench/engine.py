"""`make bench`: how fast the engine is, beside the whole network in the usual runtimes and its multiply-adds."""

import copy
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from eex.models.architecture import Network
from eex.models.card import load, read_card
from eex.models.export import export, to_onnx
from eex.models.fast import optimised
from eex.models.network import PRISTINE, EarlyExitNet
from eex.models.onnx import PROVIDERS, OnnxNet, Precision, load_onnx
from eex.models.quantising import Samples, to_int8
from eex.policies.algorithms.fixed import Fixed
from eex.policies.core.base import Context, Ints, Outcomes, Policy
from eex.policies.core.errors import EexError
from eex.policies.registry import make_policy
from eex.stream.driver import Driver
from eex.stream.frames.batch import Batch
from eex.stream.frames.frames import matching
from eex.stream.frames.sources import load_all, open_source
from eex.stream.groups import every_exit
from eex.stream.guard import guarded
from eex.stream.network import pick_device
from eex.stream.run.records import RecordWriter
from eex.stream.run.tally import Tally
from eex.stream.training.measuring import samples_of

SAMPLE = Path(__file__).parent.parent / "shipped" / "cifar10-train-sample.zip"

POINTS = 0.3
"""Accuracy that may be lost, in percentage points, by the threshold whose speed-up is what a user gains."""


@dataclass(frozen=True)
class Bench:
    """Measure the engine on each backend, and the whole network in each runtime, on the same frames in one run.

    Runtimes that are not installed are left out (pip install 'eex[bench]').
    """

    model: Path | None = None
    """Folder of weights and card; by default the shipped model."""
    source: str = "sample"
    """Labelled images to answer, the test split where there is one: a folder or zip as eex-train takes, or sample."""
    threshold: float | None = None
    """Confidence at which an exit answers. By default the cheapest one that loses at most 0.3 points of accuracy on
    these very images; choose it on others, such as those held out in training, to learn what it does on new ones."""
    batches: tuple[int, ...] = (1, 8, 32, 256)
    """Batch sizes."""
    rounds: int = 7
    """Times each thing is measured, in turn; medians are shown."""
    frames: int = 1024
    """Frames in a round at batch 32 and up; batch 1 takes a quarter of them."""
    threads: int = 0
    """CPU threads; 0 = all cores."""
    device: str = ""
    """cpu or cuda; by default both, where there is a GPU."""
    runtimes: tuple[Literal["torch", "torch.compile", "onnxruntime", "openvino"], ...] = (
        "torch",
        "torch.compile",
        "onnxruntime",
        "openvino",
    )
    """What runs the whole network, and the engine where it can."""
    precisions: tuple[Literal["fp32", "int8"], ...] = ("fp32", "int8")
    """int8 runs in ONNX Runtime and OpenVINO, on the processor. A GPU runs fp16 in any case."""
    data: str = str(SAMPLE)
    """Training images to quantise by, as for eex-export."""
    json: bool = False
    """Print JSON: {"machine": …, "rows": […], "single_frames": […], "policies": […]}."""


def best_threshold(confidence: np.ndarray, prediction: Ints, labels: Ints) -> tuple[float, Ints, float, float]:
    """The cheapest fixed threshold whose accuracy is within `POINTS` of the whole network's.

    Returns
    -------
    threshold, exit, accuracy, whole
        The threshold; where each frame leaves with it, (frames,); its accuracy and the whole network's.
    """
    whole = float((prediction[:, -1] == labels).mean())
    for threshold in np.arange(0.5, 1.0, 0.01):
        exit = leaves_at(confidence, float(threshold))
        accuracy = float((prediction[np.arange(len(exit)), exit] == labels).mean())
        if accuracy >= whole - POINTS / 100:
            return float(threshold), exit, accuracy, whole
    return 1.0, np.full(len(labels), confidence.shape[1] - 1), whole, whole


def leaves_at(confidence: np.ndarray, threshold: float) -> Ints:
    """Where each frame leaves by a fixed threshold, (frames,), of (frames, exits)."""
    early = confidence[:, :-1] >= threshold
    exit: Ints = np.where(early.any(axis=1), early.argmax(axis=1), confidence.shape[1] - 1)
    return exit


Returned = TypeVar("Returned")
Answers = Callable[[Tensor, Ints, int], Ints]
"""Runs images (N, C, H, W) with labels (N,) in micro-batches of a size, and returns the classes answered, (N,)."""


@dataclass(frozen=True)
class Contender:
    """Something that answers frames: a whole network in a runtime, or the engine on a backend."""

    what: str
    backend: str
    answers: Answers
    precision: str = "fp32"
    threshold: float | None = None
    beside: Callable[[Tensor, Ints, int], float] | None = None
    """Share of a run under `ucb` that is not the network's: policy, routing and records."""
    leaves: Ints | None = None
    """Where each image leaves by the threshold, (N,)."""


def batches(classify: Callable[[Tensor], Tensor]) -> Answers:
    """A whole network, one micro-batch after another; `classify` returns logits."""

    def answers(images: Tensor, labels: Ints, batch: int) -> Ints:
        with torch.inference_mode():
            answers = [classify(images[i : i + batch]).argmax(dim=1).cpu() for i in range(0, len(images), batch)]
        found: Ints = torch.cat(answers).numpy()
        return found

    return answers


class Whole(nn.Module):
    """The backbone and its final exit alone, with the normalisation before them."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: EarlyExitNet) -> None:
        super().__init__()
        last = net.branches[net.exits - 1]
        assert isinstance(last, nn.ModuleDict)
        self.stages, self.exit = copy.deepcopy(net.stages), copy.deepcopy(last[PRISTINE])
        self.register_buffer("mean", net.mean.clone())
        self.register_buffer("std", net.std.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images in [0, 1]."""
        x = (x - self.mean) / self.std
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.exit(x)
        return logits


def plain(net: EarlyExitNet) -> Answers:
    """The whole network in eager torch, folded and packed as the engine's."""

    def classify(x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        for i in range(net.exits):
            x = net.stage(i, x)
        return net.branch(net.exits - 1, PRISTINE, x)

    return batches(classify)


def compiled(net: EarlyExitNet) -> Answers:
    """The whole network through torch.compile."""
    whole = torch.compile(Whole(net))
    return batches(lambda x: whole(x.contiguous(memory_format=torch.channels_last)))


def whole_onnx(net: EarlyExitNet, samples: Samples | None) -> bytes:
    """The whole network as ONNX; in int8 where there are samples to quantise by."""
    data = to_onnx(Whole(net), torch.rand(2, *net.architecture.input_shape), "the whole network")
    return data if samples is None else to_int8(data, [samples.fit[PRISTINE]], "the whole network")


def in_onnx_runtime(net: EarlyExitNet, samples: Samples | None = None) -> Answers:
    """The whole network in ONNX Runtime on the processor, as it is by default but for the number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(whole_onnx(net, samples), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return batches(lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0]))


def in_openvino(net: EarlyExitNet, samples: Samples | None = None) -> Answers:
    """The whole network in OpenVINO on the processor, for latency, in float32 as the others unless it is quantised."""
    import openvino

    core = openvino.Core()
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    model = core.compile_model(core.read_model(whole_onnx(net, samples)), "CPU", options)
    return batches(lambda x: torch.from_numpy(model(x.numpy())[0]))


def engine(
    config: Bench, net: Network, backend: str, images: Tensor, labels: Ints, precision: str = "fp32"
) -> Contender:
    """The engine with a fixed threshold, answers summed up and recorded; the final exit always answers for itself.

    The threshold is the one that was asked for, or the cheapest that keeps the network's own accuracy.
    """
    confidence, prediction = exits_of(net, images)
    threshold = config.threshold if config.threshold is not None else best_threshold(confidence, prediction, labels)[0]
    p_tar = [threshold] * net.edge_exits + [0.0]

    def answers(images: Tensor, labels: Ints, batch: int) -> Ints:
        return played(net, Fixed(p_tar=p_tar, exits=net.edge_exits), images, labels, batch)[0]

    def beside(images: Tensor, labels: Ints, batch: int) -> float:
        return played(net, make_policy("ucb", exits=net.edge_exits), images, labels, batch)[1]

    return Contender("engine", backend, answers, precision, threshold, beside, leaves_at(confidence, threshold))


def played(net: Network, policy: Policy, images: Tensor, labels: Ints, batch: int) -> tuple[Ints, float]:
    """All images through an engine once: the answers, and the share of time that was not the network's."""
    driver = Driver(net, policy, gather=_gather(batch))
    tally, found, kept_s = Tally(net.edge_exits + 1), [], 0.0
    frames = images.numpy() if isinstance(net, OnnxNet) else images
    names = ["frame"] * batch
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        writer = RecordWriter(Path(folder), net.classes, net.experts)

        def keep() -> None:
            nonlocal kept_s
            started = time.perf_counter()
            for rows in driver.take():
                tally.add(rows)
                writer.write(rows)
                found.append(rows.answer.copy())
            kept_s += time.perf_counter() - started

        for start in range(0, len(images), batch):
            stop = start + batch
            driver.feed(Batch(frames[start:stop], names, labels[start:stop]))
            if driver.worth_taking:
                keep()
        driver.drain()
        keep()
        writer.close()
    beside = driver.engine.policy_seconds + driver.engine.routing_seconds + kept_s
    return np.concatenate(found), beside / (time.perf_counter() - began)


def contenders(
    config: Bench, net: EarlyExitNet, images: Tensor, labels: Ints, samples: Samples | None
) -> Iterator[Contender]:
    """What can be measured on the network's device; a line on standard error names what cannot."""
    cpu = net.mean.device.type == "cpu"
    quantised: tuple[tuple[Precision, Samples | None], ...] = (("fp32", None), ("int8", samples))
    fast = optimised(load(config.model, net.mean.device.type))
    given: Precision = "fp32" if cpu else "fp16"
    if "torch" in config.runtimes:
        yield Contender("whole", "torch", plain(fast), given)
        yield engine(config, fast, "torch", images, labels, given)
    made: list[tuple[str, Precision, Callable[[], Answers]]] = [("torch.compile", given, partial(compiled, net))]
    if cpu:
        for precision, by in quantised:
            if precision == "fp32" or by is not None:
                made.append(("onnxruntime", precision, partial(in_onnx_runtime, net, by)))
                made.append(("openvino", precision, partial(in_openvino, net, by)))
    for backend, precision, make in made:
        if backend not in config.runtimes:
            continue
        try:
            answers = make()
            answers(torch.rand(2, *net.architecture.input_shape, device=net.mean.device), np.zeros(2, np.int64), 2)
        except Exception as error:  # a runtime that is not installed, or a compiler that is not there
            why = str(error).strip().splitlines() or [type(error).__name__]
            print(f"left out: the whole network in {backend}, {precision}: {why[0][:200]}", file=sys.stderr)
            continue
        yield Contender("whole", backend, answers, precision)
    if cpu and "onnxruntime" in config.runtimes:
        yield from exported_engines(config, dict(quantised), images, labels)


def exported_engines(
    config: Bench, precisions: Mapping[Precision, Samples | None], images: Tensor, labels: Ints
) -> Iterator[Contender]:
    """The engine on ONNX Runtime: its threads asleep while they wait, with each other execution provider for the
    processor that is installed, and spinning; int8 where there are samples to quantise by."""
    import onnxruntime

    there = onnxruntime.get_available_providers()
    with tempfile.TemporaryDirectory() as root:
        folders: dict[Precision, Path] = {}
        for precision, samples in precisions.items():
            try:
                if precision == "fp32" or samples is not None:
                    export(config.model, Path(root) / precision, None, precision, samples)
                    folders[precision] = Path(root) / precision
            except EexError as error:
                print(f"left out: the engine on ONNX Runtime, {precision}: {error}", file=sys.stderr)
        # spinning last: all sessions that come after it spin, too
        for provider, spin in (("cpu", False), ("openvino", False), ("xnnpack", False), ("cpu", True)):
            for precision, folder in folders.items():
                if PROVIDERS[provider] in there:
                    net = load_onnx(folder, torch.get_num_threads(), provider, spin)
                    backend = " ".join(["onnxruntime", *[provider] * (provider != "cpu"), *["--spin"] * spin])
                    yield engine(config, net, backend, images, labels, precision)


def exits_of(net: Network, images: Tensor) -> tuple[np.ndarray, Ints]:
    """Confidence and prediction of every exit, (frames, exits) each."""
    frames = images.numpy() if isinstance(net, OnnxNet) else images
    parts = [every_exit(net, frames[start : start + 256]) for start in range(0, len(frames), 256)]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def joules(root: Path = Path("/sys/class/powercap")) -> dict[Path, tuple[float, float]]:
    """Energy that each processor package has used so far and where its counter starts anew, in joules (RAPL).

    Empty where the machine does not tell, or only tells root.
    """
    found = {}
    for package in root.glob("intel-rapl:*"):
        if package.name.count(":") > 1:  # a part of a package
            continue
        try:
            used, most = (float((package / name).read_text()) for name in ("energy_uj", "max_energy_range_uj"))
        except (OSError, ValueError):
            return {}
        found[package] = used / 1e6, most / 1e6
    return found


def spent(before: dict[Path, tuple[float, float]], after: dict[Path, tuple[float, float]]) -> float | None:
    """Joules between two readings; None where the machine does not tell."""
    if not before or before.keys() != after.keys():
        return None
    return sum((after[p][0] - used) % most if most else after[p][0] - used for p, (used, most) in before.items())


def measure(config: Bench, device: str, images: Tensor, labels: Ints) -> Iterator[dict[str, Any]]:
    """Rows of the table: each contender at each batch size, in turn in each round."""
    net = load(config.model, device)
    images = images.to(device)
    costs = net.costs()
    samples = (
        samples_of(config.data, read_card(config.model)) if device == "cpu" and "int8" in config.precisions else None
    )
    rivals = [
        r for r in contenders(config, net, images, labels, samples) if r.precision in (*config.precisions, "fp16")
    ]
    for batch in config.batches:
        wanted = max(config.frames if batch >= 32 else config.frames // 4, batch)
        index = np.arange(wanted - wanted % batch) % len(images)
        x, y = images[torch.from_numpy(index).to(images.device)], labels[index]
        seconds: dict[int, list[float]] = {k: [] for k in range(len(rivals))}
        energy: dict[int, list[float]] = {k: [] for k in range(len(rivals))}
        beside: dict[int, list[float]] = {}
        whole = len(images) - len(images) % batch  # all images: the threshold was chosen on them, not on a part
        right = [
            float((rival.answers(images[:whole], labels[:whole], batch) == labels[:whole]).mean()) for rival in rivals
        ]
        for _ in range(config.rounds):
            for k, rival in enumerate(rivals):
                before = joules()
                took, _answers = timed(partial(rival.answers, x, y, batch), images.device)
                used = spent(before, joules())
                seconds[k].append(took)
                if used is not None:
                    energy[k].append(used)
                if rival.beside is not None:
                    beside.setdefault(k, []).append(rival.beside(x, y, batch))
        medians = {k: float(np.median(seconds[k])) for k in seconds}
        for k, rival in enumerate(rivals):
            alike = [medians[j] for j, r in enumerate(rivals) if r.what == "whole" and r.precision == rival.precision]
            exit = None if rival.leaves is None else rival.leaves[index]
            yield {
                "what": rival.what,
                "backend": rival.backend,
                "device": device,
                "precision": rival.precision,
                "batch": batch,
                "threshold": rival.threshold,
                "milliseconds": 1000 * medians[k] / len(index),
                "frames_per_second": len(index) / medians[k],
                "joules": float(np.median(energy[k])) / len(index) if energy[k] else None,
                "accuracy": right[k],
                "ratio_to_best_whole": min(alike) / medians[k] if alike else None,
                "ratio_by_multiply_adds": (
                    1.0 if exit is None else float(costs.whole / np.mean([costs.of_exit(int(e)) for e in exit]))
                ),
                "share_beside_network": float(np.median(beside[k])) if k in beside else None,
            }


def timed(call: Callable[[], Returned], device: torch.device) -> tuple[float, Returned]:
    """Seconds of one call, and what it returned."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    found = call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, found


def show(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print the rows as a table."""
    names = (
        "batch",
        "what",
        "runs on",
        "",
        "ms/frame",
        "frames/s",
        "J/frame",
        "/ best\nwhole",
        "/ whole by\nmult.-adds",
    )
    table = Table(*names, "accuracy", "policy, routing,\nrecords (ucb)", title="medians", title_justify="left")
    for row in rows:
        engine, beside = row["what"] == "engine", row["share_beside_network"]
        table.add_row(
            str(row["batch"]),
            row["what"],
            f"{row['backend']} ({row['device']})",
            row["precision"],
            f"{row['milliseconds']:.3f}",
            f"{row['frames_per_second']:,.0f}",
            "" if row["joules"] is None else f"{row['joules']:.3f}",
            "" if row["ratio_to_best_whole"] is None else f"{row['ratio_to_best_whole']:.2f}",
            f"{row['ratio_by_multiply_adds']:.2f}" if engine else "",
            f"{row['accuracy']:.1%}",
            "" if beside is None else f"{beside:.1%}",
            end_section=row is rows[-1] or rows[rows.index(row) + 1]["batch"] != row["batch"],
        )
    console.print(table)


def _gather(batch: int) -> int:
    """Survivors that a deep stage waits for: as many as keep the kernels efficient, none where frames come singly."""
    return 64 if batch >= 32 else 0


def learners() -> Iterator[dict[str, Any]]:
    """How long policies take to choose and learn, on their own."""
    for name in ("fixed", "deex", "ucb", "gain-curve", "stop-curve", "rl"):
        for frames in (1, 32, 256):
            policy = make_policy(name, exits=3)
            calls = 2000 // max(1, frames // 16)
            nan, zero = np.full(frames, np.nan), np.zeros(frames, dtype=np.int64)
            no = np.zeros(frames, dtype=bool)
            choosing = learning = 0.0
            for k in range(calls):
                started = time.perf_counter()
                chosen = policy.choose(Context(frames, k * frames))
                choosing += time.perf_counter() - started
                outcomes = Outcomes(
                    run=zero,
                    frame=zero,
                    arm=chosen.arm[0],
                    probability=nan,
                    audited=no,
                    exit_at=chosen.exit_at[0],
                    confidence=np.ones((frames, 4)),
                    prediction=np.zeros((frames, 4), dtype=np.int64),
                    exit=zero,
                    offloaded=no,
                    fallback=no,
                    sent=no,
                    latency_ms=nan,
                    overhead=nan,
                    reward=np.zeros(frames),
                )
                started = time.perf_counter()
                policy.learn(outcomes)
                learning += time.perf_counter() - started
            yield {
                "policy": name,
                "frames": frames,
                "us_to_choose": 1e6 * choosing / calls,
                "us_to_learn": 1e6 * learning / calls,
                "rounds_per_second": calls * frames / (choosing + learning),
            }


def single_frames(config: Bench, images: Tensor, labels: Ints) -> Iterator[dict[str, Any]]:
    """What a single frame takes on ONNX Runtime: in the network and the distortion classifier, and around them, where
    opening and closing the records count. Policies send frames different ways."""
    within = 0.0

    def clocked(call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def run(x: Any) -> Any:
            nonlocal within
            started = time.perf_counter()
            found = call(x)
            within += time.perf_counter() - started
            return found

        return run

    try:
        with tempfile.TemporaryDirectory() as folder:
            export(config.model, Path(folder))
            net = load_onnx(folder, torch.get_num_threads())
    except EexError as error:
        print(f"left out: single frames on ONNX Runtime: {error}", file=sys.stderr)
        return
    clocked_net: Any = copy.copy(net)
    clocked_net.stages = [clocked(stage) for stage in net.stages]
    clocked_net.branches = [{name: clocked(branch) for name, branch in of.items()} for of in net.branches]
    clocked_net.classifier = net.classifier and clocked(net.classifier)
    count = max(1, min(config.frames // 4, len(images)))
    for name in ("fixed", "ucb", "gain-curve", "stop-curve"):
        taken = []
        for _ in range(config.rounds + 1):  # the first one warms up
            within = 0.0
            policy = make_policy(name, exits=net.edge_exits)
            started = time.perf_counter()
            played(clocked_net, policy, images[:count], labels[:count], 1)
            taken.append((1e6 * within / count, 1e6 * (time.perf_counter() - started - within) / count))
        network, around = np.median(taken[1:], axis=0)
        yield {"policy": name, "us_in_network": float(network), "us_around": float(around)}


def show_single_frames(rows: Iterable[Mapping[str, Any]], console: Console) -> None:
    """Print what single frames take as a table."""
    title = "single frames on ONNX Runtime"
    table = Table("policy", "µs a frame in the network", "µs around it", title=title, title_justify="left")
    for row in rows:
        table.add_row(row["policy"], f"{row['us_in_network']:.0f}", f"{row['us_around']:.0f}")
    console.print(table)


def show_learners(rows: Iterable[Mapping[str, Any]], console: Console) -> None:
    """Print the policies' rows as a table."""
    table = Table("policy", "frames a call", "µs to choose", "µs to learn", "rounds/s", title_justify="left")
    for row in rows:
        name, frames, *figures = row.values()
        table.add_row(name, str(frames), *(f"{figure:,.0f}" for figure in figures))
    console.print(table)


def _frames(config: Bench) -> tuple[NDArray[np.uint8], Ints]:
    """Images (N, C, H, W) as the model takes them, and their classes by the model's order, (N,).

    Raises
    ------
    EexError
        If the source has no image of a class that the model knows.
    """
    architecture = read_card(config.model).architecture
    source = open_source(
        config.source,
        split="test",
        preprocessing=architecture.preprocessing,
        shape=architecture.input_shape,
        resize=True,
    )
    arrays, labels, _ = load_all(source)
    labels = np.array([*matching(source.classes, architecture.classes), -1])[labels]
    if not (labels >= 0).any():
        raise EexError(f"{source.name}: no image of the model's classes, {', '.join(architecture.classes[:10])}")
    return arrays[labels >= 0], labels[labels >= 0]


def main() -> None:
    """Entry point of `make bench`."""
    sys.exit(guarded(_main))


def _main() -> int:
    config = tyro.cli(Bench, prog="python -m eex.experiments.bench.engine", config=(tyro.conf.FlagCreatePairsOff,))
    if config.threads:
        torch.set_num_threads(config.threads)
    arrays, labels = _frames(config)
    order = np.random.default_rng(0).permutation(len(arrays))
    images, labels = torch.from_numpy(arrays[order]).float() / 255, labels[order]
    devices = [pick_device(config.device)] if config.device else ["cpu"] + ["cuda"] * torch.cuda.is_available()
    here = "cpu" in devices and "onnxruntime" in config.runtimes
    singly = list(single_frames(config, images, labels)) if here else []
    rows = [row for device in devices for row in measure(config, device, images, labels)]
    machine = f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}"
    if config.json:
        print(json.dumps({"machine": machine, "rows": rows, "single_frames": singly, "policies": list(learners())}))
        return 0
    console = Console(markup=False, width=120)
    console.print(machine, highlight=False)
    show(rows, console)
    show_single_frames(singly, console)
    show_learners(learners(), console)
    return 0


if __name__ == "__main__":
    main()
