"""The network of a run: the model, its device and partition point."""

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eex.policies.core.errors import EexError
from eex.policies.core.options import check_threads
from eex.stream.frames.frames import NetworkConfig

if TYPE_CHECKING:
    from torch import nn

    from eex.models.architecture import Network
    from eex.models.network import EarlyExitNet

ZOOS = ("timm", "torchvision", "transformers")
"""Libraries whose networks --network takes by name, as library:name."""


_threads = 0
_one_at_a_time = threading.Lock()


def use_threads(count: int) -> None:
    """Let networks that are loaded from now on use so many CPU threads; 0 leaves the number to their runtime.

    Raises
    ------
    EexError
        If it is not possible.
    """
    check_threads(count)
    global _threads
    _threads = count


def load_network(config: NetworkConfig) -> "Network":
    """Load the configured network, optimised for inference, on its device, to be run by the configured backend.

    With `backend` "auto", a folder that holds both weights and ONNX files is run by the backend that takes less time
    for a micro-batch on this machine, on a GPU by torch; otherwise by the one that can. torch is imported only if it
    may run the network.

    Raises
    ------
    EexError
        If the network cannot be used, or the device or partition point does not exist.
    """
    from eex.models.card import WEIGHTS

    folder = config.model
    exported = folder is not None and os.path.exists(folder / "onnx.json")  # False where Path.exists raises
    weights = folder is None or not exported or (folder / WEIGHTS).exists()
    if config.backend == "torch" and not weights:
        raise EexError(f"--backend torch: {folder} holds no {WEIGHTS}, only ONNX files; name the folder they came from")
    on_gpu = config.device == "cuda" and weights  # ONNX files run on the processor here
    if config.backend == "onnx" or (config.backend == "auto" and exported and not on_gpu):
        from eex.models.onnx import int8_instructions, load_onnx

        if folder is None:
            raise EexError("--backend onnx needs an exported model: run eex-export --out DIR, then add --model DIR")
        if config.device == "cuda":
            raise EexError("--device cuda: ONNX files run on the processor here; expected --device cpu or auto")
        exported_net = load_onnx(folder, _threads, config.provider, config.spin)
        net: Network = exported_net
        if exported_net.precision == "int8" and config.provider == "cpu" and not int8_instructions():
            lacks = f"{folder}: an int8 model, and this processor lacks VNNI, AMX and dot-product instructions"
            if config.backend == "auto":
                raise EexError(f"{lacks}; export it in fp32, or add --backend onnx to run it all the same")
            logging.getLogger(__name__).warning("%s: it may run more slowly than in fp32", lacks)
        if config.backend == "auto" and weights and _has_torch():
            from eex.models.comparing import check_same

            torch_net = _torch_network(config)
            check_same(torch_net, net, "the ONNX form of the model", torch_net.mean.dtype)
            net = _faster({"onnx": net, "torch": torch_net}, getattr(config, "batch", 1))
    else:
        net = _torch_network(config)
    if config.partition > net.exits:
        raise EexError(f"--partition must lie in 1…{net.exits}, the model's stages; got {config.partition}")
    net.partition = config.partition or net.partition
    return net


def _has_torch() -> bool:
    import importlib.util

    return importlib.util.find_spec("torch") is not None


def _torch_network(config: NetworkConfig) -> "EarlyExitNet":
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise EexError(
            f"{config.model or 'the shipped model'}: running its weights needs torch: pip install 'eex[torch]'; "
            "without torch, --model names a folder that eex-export wrote elsewhere"
        ) from None
    from eex.models.card import load
    from eex.models.fast import optimised

    if config.provider != "cpu":
        raise EexError(f"--provider {config.provider}: is one of ONNX Runtime's; add --backend onnx")
    if config.spin and config.backend != "auto":
        raise EexError("--spin is for ONNX Runtime's threads; add --backend onnx")
    if _threads:
        torch.set_num_threads(_threads)
    return optimised(load(config.model, pick_device(config.device), make_network(config.network, config.model)))


def _faster(nets: "dict[str, Network]", batch: int) -> "Network":
    """The network that takes less time for all stages and exits of a micro-batch, by medians."""
    from eex.models.arrays import to_numpy

    taken: dict[str, list[float]] = {name: [] for name in nets}
    for _ in range(7):  # in turn, so that a busy machine slows all
        for name, net in nets.items():
            images = np.zeros((batch, *net.architecture.input_shape), np.float32)
            with net.inferring():
                x = net.array(images)
                started = time.perf_counter()
                for i in range(net.exits):
                    x = net.stage(i, x)
                    to_numpy(net.confident(net.branch(i, net.experts[0], x))[0])
            taken[name].append(time.perf_counter() - started)
    ms = {name: 1000 * sorted(times[2:])[2] for name, times in taken.items()}  # the first two warm up
    best = min(ms, key=lambda name: ms[name])
    each = ", ".join(f"{took:.2f} ms in {name}" for name, took in ms.items())
    logging.getLogger(__name__).warning("backend %s: a micro-batch of %d takes %s", best, batch, each)
    return nets[best]


def make_network(name: str, model: Path | None = None) -> "EarlyExitNet | None":
    """Make the network that --network names, cut as the card of a model says; None if the name is empty.

    Parameters
    ----------
    name
        "module:function", or "timm:name" and the like (`make_module`).
    model
        Folder of the model whose weights the network is to get: it says where a network is cut that was not cut by its
        own code.

    Raises
    ------
    EexError
        If the function cannot be imported, raises an exception, or returns something else, or if the network is not the
        one that the card describes.
    """
    if not name:
        return None
    from eex.models.card import read_card
    from eex.models.network import EarlyExitNet
    from eex.models.placing import cut_again

    made = make_module(name, len(read_card(model).architecture.classes) if takes_classes(name) else 0)
    if isinstance(made, EarlyExitNet):
        return made
    try:
        return cut_again(made, read_card(model).architecture)
    except EexError as error:
        raise EexError(f"--network {name}: {error}") from None


def takes_classes(name: str) -> bool:
    """Whether what makes a network is given the number of classes: a library's networks, and functions of `classes`."""
    import inspect

    library, _, function = name.partition(":")
    if library in ZOOS:
        return True
    makes = _function(name, library, function)
    try:
        return "classes" in inspect.signature(makes).parameters
    except (TypeError, ValueError):  # a function in C may have no signature
        return False


def make_module(name: str, classes: int = 0, pretrained: bool = False) -> "nn.Module":
    """Make the network that --network names.

    Parameters
    ----------
    name
        "module:function" of the user's, or "timm:name", "torchvision:name", "transformers:name".
    classes
        Number of classes, for those that take it (`takes_classes`); of a library's networks, 0 keeps their own.
    pretrained
        Whether a library loads its published weights; it may have to download them.

    Raises
    ------
    EexError
        If it cannot be imported, raises an exception, or returns something else.
    """
    from torch import nn

    library, _, function = name.partition(":")
    if library in ZOOS:
        return _of_library(name, library, function, classes, pretrained)
    if pretrained:
        raise EexError(f"--pretrained is for networks of {', '.join(ZOOS)}; {name} comes with its own weights")
    make = _function(name, library, function)
    try:
        made = make(classes=classes) if takes_classes(name) else make()
    except EexError as error:
        raise EexError(f"--network {name}: {error}") from None
    except Exception as error:  # whatever the user's code raises
        lines = " ".join(str(error).split())
        hint = ""
        if "module." in lines and isinstance(error, RuntimeError):
            hint = "; its weights come from DataParallel: read them by eex.models.read_state, which removes 'module.'"
        raise EexError(f"--network {name}: the function raised {type(error).__name__}: {lines[:300]}{hint}") from error
    if not isinstance(made, nn.Module):
        raise EexError(
            f"--network {name}: must return a torch.nn.Module, such as what eex.models.cut returns, "
            f"got {type(made).__name__}"
        )
    return made


def _function(name: str, module: str, function: str) -> "Callable[..., Any]":
    import importlib
    import sys

    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last: a file here must not take the place of a library's module
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # whatever the user's module does
        lines = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise EexError(f"--network {name}: cannot be imported: {lines}; expected module:function") from None
    if not callable(found):
        raise EexError(
            f"--network {name}: must name a function, got a {type(found).__name__}; expected module:function"
        )
    return found


def _of_library(name: str, library: str, network: str, classes: int, pretrained: bool) -> "nn.Module":
    """A network of timm, torchvision or transformers, for a number of classes."""
    import importlib

    made: nn.Module
    try:
        importlib.import_module(library)
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch raises the latter
        raise EexError(f"--network {name}: {library} cannot be imported: {error}; pip install {library}") from None
    try:
        with _tensors_alone():
            made = _made_by(library, network, classes, pretrained)
    except Exception as error:  # whatever the library raises: an unknown name, no connection
        lines = " ".join(str(error).split())
        raise EexError(f"--network {name}: {library} cannot make it: {type(error).__name__}: {lines[:300]}") from None
    return made


def _made_by(library: str, network: str, classes: int, pretrained: bool) -> "nn.Module":
    import importlib

    made: nn.Module
    if library == "timm":
        more = {"num_classes": classes} if classes else {}
        made = importlib.import_module("timm").create_model(network, pretrained=pretrained, **more)
    elif library == "torchvision":
        get = importlib.import_module("torchvision.models").get_model
        made = get(network, weights="DEFAULT") if pretrained else get(network, weights=None, num_classes=classes)
        if pretrained and classes:
            _replace_head(made, classes)
    else:
        transformers: Any = importlib.import_module("transformers")
        auto = transformers.AutoModelForImageClassification
        if pretrained:
            sized: dict[str, Any] = {"num_labels": classes, "ignore_mismatched_sizes": True} if classes else {}
            made = auto.from_pretrained(network, **sized)
        else:
            made = auto.from_config(transformers.AutoConfig.from_pretrained(network, num_labels=classes))
    return made


@contextlib.contextmanager
def _tensors_alone() -> Iterator[None]:
    """Let `torch.load` take nothing but tensors while a library loads weights, whatever it asks for: nothing is run.

    This holds for the whole process, and for one library at a time.
    """
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    with _one_at_a_time:
        before = os.environ.get(name)
        os.environ[name] = "1"
        try:
            yield
        finally:
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before


def _replace_head(module: "nn.Module", classes: int) -> None:
    """Put a new linear layer or 1x1 convolution for this many classes in the place of a network's last one."""
    from torch import nn

    name, last = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    parent, _, child = name.rpartition(".")
    if isinstance(last, nn.Linear):
        new: nn.Module = nn.Linear(last.in_features, classes)
    else:
        new = nn.Conv2d(last.in_channels, classes, 1)
    setattr(module.get_submodule(parent), child, new)


def pick_device(name: str) -> str:
    """Resolve a device name: "cpu", "cuda", "cuda:1", or "auto" for the GPU if there is one.

    Raises
    ------
    EexError
        If there is no such device.
    """
    import torch

    match = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", name)
    if not match:
        raise EexError(f"--device {name}: expected auto, cpu, cuda, or cuda:N for the GPU of that number")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not torch.cuda.is_available():
        raise EexError(f"--device {name}: this torch sees no GPU")
    if match[1] and int(match[1]) >= (count := torch.cuda.device_count()):
        raise EexError(f"--device {name}: this machine has {count}, counted from cuda:0")
    return name
