"""An exported model, run by ONNX Runtime on numpy's arrays. Imports no torch."""

import hashlib
import math
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from eex.models.architecture import Architecture, Costs
from eex.models.card import CARD, Card, check_temperatures, fingerprint, read_card
from eex.policies.core.errors import EexError, ModelError
from eex.policies.core.files import parse_json

MANIFEST, CLASSIFIER = "onnx.json", "classifier.onnx"


AT_ONCE = 64
"""Images that the whole network runs at once while a model is exported."""

Precision = Literal["fp32", "int8", "fp16"]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the ONNX files in a folder are.

    Attributes
    ----------
    format
        Version of this layout: 1.
    fingerprint
        Of the exported model: that of the card beside it in fp32, else `reduced_fingerprint`.
    costs
        Multiply-adds of stages and branches; bytes of features.
    sha256
        SHA-256 of each file, by name.
    precision
        That the files compute in.
    tail
        Fingerprint of the float32 model whose stages continue from the features of a reduced precision; empty in fp32.
    """

    format: int
    fingerprint: str
    costs: dict[str, list[int]]
    sha256: dict[str, str]
    precision: Precision = "fp32"
    tail: str = ""


def reduced_fingerprint(card: Card, precision: str, sha256: Mapping[str, str]) -> str:
    """Fingerprint of a model at a reduced precision, whose files have these digests: it answers unlike any other."""
    parts = [fingerprint(card), precision, *(f"{name} {sha256[name]}" for name in sorted(sha256))]
    return digest("\n".join(parts).encode())[:16]


INT8_FLAGS = {"avx512_vnni": "VNNI", "avx_vnni": "VNNI", "amx_int8": "AMX", "asimddp": "dot product", "i8mm": "I8MM"}
"""Instructions that multiply and add int8 at once, by the processor's flag in /proc/cpuinfo."""


def int8_instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The instructions of this processor that make int8 faster than float32; empty if it has none that can be seen."""
    if sys.platform == "darwin":
        return "dot product" if platform.machine() == "arm64" else ""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return ""
    flags = {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split()}
    return next((name for flag, name in INT8_FLAGS.items() if flag in flags), "")


def stage_file(i: int) -> str:
    """File name of stage i, counted from 0; files count from 1."""
    return f"stage-{i + 1}.onnx"


def branch_file(i: int, expert: str) -> str:
    """File name of an expert's branch at exit i.

    Raises
    ------
    EexError
        If the expert's name would lead to another folder.
    """
    if any(c in expert for c in "/\\\0") or expert.startswith("."):
        raise EexError(f"expert {expert!r}: the name cannot be part of a file's; rename the expert")
    return f"branch-{i + 1}-{expert}.onnx"


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
"""Execution providers of ONNX Runtime by the names that `--provider` takes."""


def check_provider(name: str) -> None:
    """Raise `EexError` if this ONNX Runtime has no execution provider of that name."""
    import onnxruntime

    if name not in PROVIDERS:
        raise EexError(f"--provider {name}: expected one of {', '.join(PROVIDERS)}")
    there = onnxruntime.get_available_providers()
    if PROVIDERS[name] not in there:
        here = ", ".join(short for short, long in PROVIDERS.items() if long in there)
        raise EexError(
            f"--provider {name}: ONNX Runtime {onnxruntime.__version__} as installed has {here} only; "
            "other providers come with other wheels of it, such as onnxruntime-gpu or onnxruntime-openvino"
        )


ELSEWHERE = b"\x0a\x08location\x12"
"""How a tensor that is kept in another file begins to say in which: an entry with this key, in protobuf's encoding."""


LARGE_BYTES = 1 << 18
"""Bytes of one frame's input from which on a processor is given one frame at a time: what lies between the layers is
several times as large, and of several frames it would leave the cache. Up to the first 14x14 maps of
EfficientNet-Lite0, an image of 224x224 pixels took 7.6 ms by itself and 9.9 ms as one of 32."""

_shared = 0
"""Threads of the pool that spinning sessions share; 0 before there is one."""


def _share_pool(threads: int) -> bool:
    """Whether there is a pool of so many threads, whose idle ones spin, for all sessions of the process.

    Older versions of ONNX Runtime lack it, and its number of threads cannot change.
    """
    global _shared
    import onnxruntime

    if not _shared and hasattr(onnxruntime, "set_global_thread_pool_sizes"):
        onnxruntime.set_global_thread_pool_sizes(threads, 1)
        _shared = threads
    return threads == _shared


class Session:
    """A function of one float32 array, (B, ...) to (B, ...), in ONNX Runtime.

    Raises
    ------
    ModelError
        If ONNX Runtime cannot run it, it is another kind of function, or it keeps weights in another file, which is not
        read: `eex-export` writes none.
    """

    def __init__(self, data: bytes, path: Path, threads: int, provider: str = "cpu", spin: bool = False) -> None:
        import onnxruntime

        if ELSEWHERE in data:
            raise ModelError(f"{path}: keeps weights in another file, which is not read; run eex-export again")
        options = onnxruntime.SessionOptions()
        if (spin and _share_pool(threads)) or _shared:  # once there is a pool, no session may have threads of its own
            options.use_per_session_threads = False
        else:
            options.intra_op_num_threads = threads
            options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
            options.add_session_config_entry("session.force_spinning_stop", "1")  # threads of sessions would fight
        options.log_severity_level = 4
        wanted = list(dict.fromkeys((PROVIDERS[provider], PROVIDERS["cpu"])))  # the processor runs what it cannot
        try:
            self.session = onnxruntime.InferenceSession(data, options, providers=wanted)
        except Exception as error:  # ONNX Runtime's errors have no public base class
            line = " ".join(str(error).split())[:300]
            raise ModelError(f"{path}: ONNX Runtime {onnxruntime.__version__} cannot run it: {line}") from None
        if PROVIDERS[provider] not in self.session.get_providers():
            raise EexError(f"--provider {provider}: is installed, but cannot be used on this machine")
        self.on_processor = provider == "cpu"
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or inputs[0].type != "tensor(float)":
            raise ModelError(f"{path}: must turn one float32 array into one; run eex-export again")
        self.input, self.outputs = inputs[0].name, [outputs[0].name]

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:
        x = np.ascontiguousarray(x, np.float32)
        if self.on_processor and len(x) > 1 and x[0].nbytes >= LARGE_BYTES:
            return np.concatenate([self._run(x[i : i + 1]) for i in range(len(x))])
        return self._run(x)

    def _run(self, x: NDArray[Any]) -> NDArray[Any]:
        values: NDArray[Any] = self.session.run(self.outputs, {self.input: x})[0]
        return values


class OnnxNet:
    """An exported network: numpy's arrays in, numpy's arrays out. See `Network` for what it offers the engine.

    Parameters
    ----------
    stages
        Functions that follow each other; the first one normalises the images.
    branches
        Per stage, the calibrated branch of each expert, by name.
    classifier
        The distortion classifier; None if there is none.
    costs
        As counted when the model was exported.
    precision, tail
        As in `Manifest`.
    abstain_below
        As on the card.
    """

    def __init__(
        self,
        stages: Sequence[Session],
        branches: Sequence[Mapping[str, Session]],
        architecture: Architecture,
        temperature: list[dict[str, float]],
        classifier: Callable[[NDArray[Any]], NDArray[Any]] | None,
        costs: Costs,
        fingerprint: str = "",
        precision: Precision = "fp32",
        tail: str = "",
        abstain_below: float = 0.0,
    ) -> None:
        self.stages, self.branches, self.architecture, self.classifier = stages, branches, architecture, classifier
        self.temperature, self.measured, self.fingerprint = temperature, costs, fingerprint
        self.precision, self.tail_fingerprint = precision, tail or fingerprint
        self.abstain_below = abstain_below
        self.experts = tuple(branches[0])
        self.partition = architecture.partition or max(1, len(stages) - 1)

    @property
    def exits(self) -> int:
        """Exits, the final one included."""
        return len(self.stages)

    @property
    def edge_exits(self) -> int:
        """Exits that may answer on the edge: those up to the partition point, but for the final exit."""
        return min(self.partition, self.exits - 1)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the logits."""
        return self.architecture.classes

    def stage(self, i: int, x: NDArray[Any]) -> NDArray[Any]:
        """Features after stage i; the first one's file includes the normalisation."""
        return self.stages[i](x)

    def branch(self, i: int, expert: str, x: NDArray[Any]) -> NDArray[Any]:
        """Calibrated logits (B, K) of one expert's branch at exit i."""
        return self.branches[i][expert](x)

    def confident(self, logits: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Confidence and predicted class, (B,) each, as `EarlyExitNet.confident` defines them."""
        top = self.architecture.confidence == "top"
        if top and len(logits) == 1:  # the same with the fewest calls: they take longer than the numbers
            row = logits[0]
            index = row.argmax()
            return np.array([1 / np.add.reduce(np.exp(row - row[index]))]), np.array([index])
        prediction = logits.argmax(axis=1)
        odds = np.exp(logits - np.maximum.reduce(logits, axis=1, keepdims=True))
        total = np.add.reduce(odds, axis=1)
        if top:
            return 1 / total, prediction  # the largest of the odds is 1
        p = odds / total[:, None]
        entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=1)
        return np.clip(1 - entropy / math.log(max(2, logits.shape[1])), 0, 1), prediction

    def costs(self) -> Costs:
        """Multiply-adds and bytes as counted when the model was exported."""
        return self.measured

    def array(self, values: NDArray[Any], stage: int = 0) -> NDArray[Any]:
        """The array itself."""
        return values

    def inferring(self) -> AbstractContextManager[Any]:
        """Nothing: there is nothing to turn off."""
        return nullcontext()


def default_threads() -> int:
    """CPU threads where no number is asked for: OMP_NUM_THREADS, or all cores that this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_onnx(folder: Path | str, threads: int = 0, provider: str = "cpu", spin: bool = False) -> OnnxNet:
    """Load a model that `eex.models.export.export` wrote.

    Parameters
    ----------
    folder
        Folder of the ONNX files, their manifest and the model's card.
    threads
        CPU threads; 0 takes `default_threads`.
    provider
        Execution provider, a name in `PROVIDERS`.
    spin
        Whether threads that wait for work spin instead of sleeping, on one pool of threads for the whole process. On
        processors of its own a single frame takes about a quarter less time so; beside other processes on two
        processors it took eight times as long as with threads that sleep. Every session that the process opens
        afterwards has to use the pool, those of other libraries too (`use_per_session_threads = False`).

    Raises
    ------
    EexError
        If ONNX Runtime or the provider is not installed; if files are missing, damaged or do not belong together.
    """
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        raise EexError("--backend onnx needs ONNX Runtime: pip install onnxruntime") from None
    check_provider(provider)
    threads, folder = threads or default_threads(), Path(folder)
    card, path = read_card(folder), folder / MANIFEST
    try:
        manifest = msgspec.convert(parse_json(path.read_bytes()), type=Manifest)
    except FileNotFoundError:
        raise ModelError(f"{path}: missing; --backend onnx runs a folder that eex-export wrote") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ModelError(f"{path}: not written by this version of eex ({error}); run eex-export again") from None
    if manifest.format != 1:
        raise ModelError(f"{path}: has format {manifest.format}, expected 1; run this version's eex-export again")
    full = manifest.precision == "fp32"
    expected = fingerprint(card) if full else reduced_fingerprint(card, manifest.precision, manifest.sha256)
    if manifest.fingerprint != expected:
        raise ModelError(f"{path}: does not match the card beside it; run eex-export again")

    def session(name: str) -> Session:
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise ModelError(f"{folder / name}: cannot be read: {error.strerror}; run eex-export again") from None
        if digest(data) != manifest.sha256.get(name):
            raise ModelError(f"{folder / name}: does not match {MANIFEST} (damaged or replaced); run eex-export again")
        return Session(data, folder / name, threads, provider, spin)

    count = len(card.architecture.structures)
    check_temperatures(card, folder / CARD)
    try:
        costs = Costs(**{k: tuple(v) for k, v in manifest.costs.items()})
    except TypeError as error:
        raise ModelError(f"{path}: {error}; run eex-export again") from None
    stages = [session(stage_file(i)) for i in range(count)]
    branches = [{e: session(branch_file(i, e)) for e in card.architecture.experts} for i in range(count)]
    classifier = session(CLASSIFIER) if card.classifier else None
    temperature = [dict(t) for t in card.temperatures]
    of = (manifest.fingerprint, manifest.precision, manifest.tail, card.abstain_below)
    return OnnxNet(stages, branches, card.architecture, temperature, classifier, costs, *of)
