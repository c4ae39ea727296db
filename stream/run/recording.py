"""Recording a trace: what every exit answers for every frame of a source under a distortion schedule."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from eex.policies.core.trace import Trace
from eex.stream.config import FrameConfig
from eex.stream.frames.frames import Frames, nothing_usable
from eex.stream.network import load_network, pick_device
from eex.stream.worker.tail import image_answers, load_answerer


def record(
    config: FrameConfig,
    report: Callable[[int, int], None] = lambda done, total: None,
    answer_with: Path | None = None,
) -> tuple[Trace, int, str]:
    """Run every exit on every frame. Only the trace's columns are kept.

    Parameters
    ----------
    report
        Called after each micro-batch with the number of frames done, and of all; 0 where that is not known.
    answer_with
        Folder of a model that answers in the cloud in place of the network's final exit.

    Returns
    -------
    trace, skipped, lost
        The trace, how many images were skipped, and why the source broke off; empty if it did not.

    Raises
    ------
    EexError
        If the configuration, the model or the source cannot be used.
    """
    config.check()
    schedule = config.schedule()
    from eex.stream.groups import every_exit  # only now torch, which takes seconds

    net = load_network(config)
    cloud = None
    if answer_with is not None:
        cloud = image_answers(net, load_answerer(answer_with, "", pick_device(config.device)))
    frames = Frames(config, schedule, net)
    skipped: dict[str, str] = {}
    labels, answers = [], []
    done = 0
    for batch in frames.batches(frames.total, skipped):
        labels.append(batch.labels)
        answers.append(every_exit(net, batch.images, cloud))
        done += len(batch)
        report(done, frames.total)
    if not done:
        raise nothing_usable(config, skipped)
    confidence, prediction, probabilities = zip(*answers, strict=True)
    number = np.arange(done)
    levels = schedule.levels(number)
    trace = Trace(
        confidence=np.concatenate(confidence),
        prediction=np.concatenate(prediction),
        label=np.concatenate(labels),
        classes=net.classes,
        distortion=schedule.names(number),
        level=levels[number, (levels > 0).argmax(axis=1)],  # of the first kind that is applied
        probabilities=None if net.classifier is None else np.concatenate(probabilities),
        experts=() if net.classifier is None else net.experts,
        model=net.fingerprint,
    )
    return trace, len(skipped), frames.lost
