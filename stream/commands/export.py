"""`eex-export`: write a model as ONNX files."""

import sys
from dataclasses import dataclass
from pathlib import Path

from eex.stream.guard import guarded


@dataclass(frozen=True)
class Export:
    """Export a model to ONNX, so that eex-stream --backend onnx runs it in ONNX Runtime.

    Writes one float32 file per stage, branch and distortion classifier, and the model's card. With --out naming the
    model's own folder, eex-stream measures both backends and takes the faster one.
    """

    model: Path | None = None
    """Folder of the model's weights and card. By default, the shipped model."""
    out: Path = Path("exported")
    """Folder to write to."""
    network: str = ""
    """Your own network, as module:function; the function returns it cut into stages."""


def main() -> None:
    """Entry point of `eex-export`."""
    sys.exit(guarded(_main))


def _main() -> None:
    import tyro

    options = tyro.cli(Export, prog="eex-export")

    from eex.models.export import export
    from eex.stream.network import make_network

    files = export(options.model, options.out, make_network(options.network, options.model))
    size = sum(file.stat().st_size for file in files)
    print(f"{options.out}: {len(files)} ONNX files, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
