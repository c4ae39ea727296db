"""`eex.models.export.export`, sped up: torch's exporter parses the sources of all its operators for each module that it
exports, and a model has many; here it parses them once in a process."""

import functools
from pathlib import Path
from typing import Any
from unittest import mock

from eex.models import export as module


@functools.cache
def _operators() -> Any:
    from onnxscript._framework_apis.torch_2_5 import get_torchlib_ops

    return get_torchlib_ops()


def export(*arguments: Any, **options: Any) -> list[Path]:
    from torch.onnx._internal._lazy_import import onnxscript_apis

    with mock.patch.object(onnxscript_apis, "get_torchlib_ops", _operators):
        return module.export(*arguments, **options)
