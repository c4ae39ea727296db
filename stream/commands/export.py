"""`eex-export`: write a model as ONNX files."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from eex.policies.core.errors import EexError
from eex.stream.guard import guarded


@dataclass(frozen=True)
class Export:
    """Export a model to ONNX, so that eex-stream --backend onnx runs it in ONNX Runtime.

    Writes one file per stage, branch and distortion classifier, and the model's card. With --out naming the model's own
    folder, eex-stream measures both backends and takes the faster one.
    """

    model: Path | None = None
    """Folder of the model's weights and card. By default, the shipped model."""
    out: Path = Path("exported")
    """Folder to write to."""
    network: str = ""
    """Your own network, as module:function, or one of a library, such as timm:name."""
    precision: Literal["fp32", "int8", "fp16"] = "fp32"
    """fp32; int8 for processors with VNNI, AMX or dot-product instructions, quantised by the images that --data names;
    or fp16 for GPUs."""
    data: str = ""
    """With --precision int8: labelled training images of the model's classes, as for eex-train. Some are held out to
    fit the temperatures and to measure each exit; the figures go to the card."""


def main() -> None:
    """Entry point of `eex-export`."""
    sys.exit(guarded(_main))


def _main() -> None:
    import tyro

    options = tyro.cli(Export, prog="eex-export")

    from eex.models.card import read_card
    from eex.models.export import export
    from eex.stream.network import make_network

    if (options.precision == "int8") != bool(options.data):
        raise EexError("--precision int8 goes with --data, the training images to quantise by, and nothing else does")
    samples = None
    if options.data:
        from eex.stream.training.measuring import samples_of

        samples = samples_of(options.data, read_card(options.model))
    network = make_network(options.network, options.model)
    files = export(options.model, options.out, network, options.precision, samples)
    size = sum(file.stat().st_size for file in files)
    print(f"{options.out}: {len(files)} ONNX files, {size / 1e6:.1f} MB")
    if samples is not None:
        measured = read_card(options.out).measured["int8"]
        print(f"int8 beside fp32, on {measured['images']:,} images held out of {options.data}:")
        for row in measured["exits"]:
            print(
                f"  exit {row['exit']}, {row['expert']}: accuracy {row['accuracy']:.1%} ({row['accuracy_fp32']:.1%}), "
                f"calibration error {row['ece']:.3f} ({row['ece_fp32']:.3f}), same answers {row['agreement']:.1%}"
            )


if __name__ == "__main__":
    main()
