"""Reduced precisions of exported parts: int8 by static quantisation, fp16 by conversion. Needs onnx."""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eex.models.onnx import AT_ONCE
from eex.policies.core.base import Floats, Ints
from eex.policies.core.errors import ModelError

if TYPE_CHECKING:
    from eex.models.network import EarlyExitNet


@dataclass(frozen=True)
class Samples:
    """Images to quantise by, and images held out to fit temperatures and to measure on.

    Attributes
    ----------
    fit, held
        Per expert, float32 images (N, C, H, W) in [0, 1], distorted as the expert is made for.
    labels
        Classes of the held-out images, (N,), the same for each expert.
    source
        Where they come from, for the card.
    """

    fit: dict[str, NDArray[np.float32]]
    held: dict[str, NDArray[np.float32]]
    labels: Ints
    source: str


class _Reader:
    """Hands arrays to the quantiser, a few rows at a time."""

    def __init__(self, name: str, arrays: Sequence[NDArray[Any]]) -> None:
        self._left = iter([{name: part} for array in arrays for part in parts_of(array)])

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next rows by the input's name; None after the last."""
        return next(self._left, None)


def parts_of(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """An array (N, ...) in parts of `AT_ONCE` rows."""
    for start in range(0, len(array), AT_ONCE):
        yield array[start : start + AT_ONCE]


def to_int8(data: bytes, inputs: Sequence[NDArray[Any]], name: str) -> bytes:
    """A float32 ONNX model with weights and activations in int8, between float32 inputs and outputs.

    Weights have a scale per channel and take 7 of the 8 bits: otherwise the sums of processors without VNNI saturate,
    and the same file answers differently there. Activations take the range that they have for the inputs.

    Parameters
    ----------
    inputs
        Arrays (N, ...) of what the model will see.
    name
        Of the part, for errors.

    Raises
    ------
    ModelError
        If it cannot be quantised.
    """
    import onnx
    from onnxruntime import quantization

    model = onnx.load_model_from_string(data)
    logging.getLogger().disabled, before = True, logging.getLogger().disabled  # the quantiser warns on the root logger
    try:
        with tempfile.TemporaryDirectory() as folder:
            given, ready, done = (Path(folder) / f"{step}.onnx" for step in ("given", "ready", "done"))
            given.write_bytes(data)
            quantization.quant_pre_process(given, ready, skip_symbolic_shape=True)
            quantization.quantize_static(
                ready,
                done,
                _Reader(model.graph.input[0].name, inputs),
                per_channel=True,
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
            return done.read_bytes()
    except Exception as error:  # whatever the quantiser raises
        line = " ".join(str(error).split())[:300]
        raise ModelError(f"{name} cannot be quantised: {type(error).__name__}: {line}") from None
    finally:
        logging.getLogger().disabled = before


def to_fp16(data: bytes, name: str) -> bytes:
    """A float32 ONNX model that computes in float16, between float32 inputs and outputs.

    Raises
    ------
    ModelError
        If it cannot be converted.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    try:
        half = convert_float_to_float16(onnx.load_model_from_string(data), keep_io_types=True)
    except Exception as error:  # whatever the converter raises
        line = " ".join(str(error).split())[:300]
        raise ModelError(f"{name} cannot be converted to fp16: {type(error).__name__}: {line}") from None
    converted: bytes = half.SerializeToString()
    return converted


def divided(data: bytes, temperature: float) -> bytes:
    """An ONNX model whose output is divided by a temperature."""
    import onnx

    model = onnx.load_model_from_string(data)
    graph = model.graph
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(temperature, np.float32), "temperature"))
    graph.node.append(onnx.helper.make_node("Div", [graph.output[0].name, "temperature"], ["calibrated"]))
    graph.output[0].name = "calibrated"
    calibrated: bytes = model.SerializeToString()
    return calibrated


def compared_exit(net: "EarlyExitNet", logits: Floats, before: Floats, labels: Ints) -> dict[str, float]:
    """How an exit answers at a reduced precision and before, from calibrated logits (N, K) of the same images."""
    import torch

    from eex.policies.core.metrics import expected_calibration_error

    (sure, found), (expected_sure, expected) = (
        [part.numpy() for part in net.confident(torch.from_numpy(z).double())] for z in (logits, before)
    )
    return {
        "accuracy": float((found == labels).mean()),
        "accuracy_fp32": float((expected == labels).mean()),
        "ece": expected_calibration_error(sure, found == labels),
        "ece_fp32": expected_calibration_error(expected_sure, expected == labels),
        "agreement": float((found == expected).mean()),
    }
