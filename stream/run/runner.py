"""A run: a source is streamed through the engine under one policy after another, recorded and summed up."""

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eex.models.architecture import Network
from eex.policies.core.base import ExitCost, Policy
from eex.policies.core.errors import EexError
from eex.policies.core.schedule import Piece, Schedule
from eex.policies.registry import make_policy
from eex.policies.wrappers.aim import keeping
from eex.stream.config import Resolved, StreamConfig, check_goes_on
from eex.stream.frames.frames import Frames, Playable, nothing_usable
from eex.stream.network import load_network, pick_device
from eex.stream.planning.sending import choose_sending
from eex.stream.run.play import Player, Show, Viewer, answerers
from eex.stream.run.recorder import warn
from eex.stream.run.summary import summarise, write_curves, write_json
from eex.stream.sharing import check_shares
from eex.stream.wire.connection import connected
from eex.stream.worker.tail import image_answers, load_answerer

if TYPE_CHECKING:
    from eex.models.architecture import Network

PATIENCE_S = 60.0
"""How long a run waits for its embedded worker to load the model."""


View = Callable[[StreamConfig, Network, Playable, ExitCost], contextlib.AbstractContextManager[Viewer]]
"""Makes what watches a run closely, from its options, its network, its frames and the price of each exit."""


def run(
    config: StreamConfig,
    show: Show = lambda glance: None,
    resume: Path | str | None = None,
    view: View | None = None,
    open_frames: Callable[[StreamConfig, Schedule, Network], Playable] = Frames,
) -> dict[str, Any]:
    """Play a stream as configured; returns the summary that also lies in its folder as `summary.json`.

    Parameters
    ----------
    show
        Called a few times a second.
    resume
        Folder of a run that was cut off: it goes on where its records and state were committed.
    view
        Watches the run closely.
    open_frames
        Makes what is played; by default, the images that the configuration names.

    Raises
    ------
    EexError
        If the configuration, the model, the source or the worker cannot be used.
    """
    from eex.stream.worker.embedded import EmbeddedWorker

    resolved = config.resolve()
    if resume is not None:
        check_goes_on(config, Path(resume))
    connection = resolved.connection
    # torch, which takes seconds, comes only now: a mistake in the options is reported at once
    with contextlib.ExitStack() as stack:
        worker = None
        if connection.processes:
            models = () if config.model is None else (config.model,)
            worker = stack.enter_context(
                EmbeddedWorker(
                    models,
                    config.network,
                    processes=connection.processes,
                    answer_with=connection.answer_with,
                    restart=True,
                    warn=warn,
                )
            )
        net = load_network(config)
        from eex.stream.engine import exit_cost_of

        exit_cost = exit_cost_of(config.exit_cost, net)
        policies = _policies(config, resolved, net)
        frames = open_frames(config, resolved.schedule, net)
        embedded = None if worker is None else (worker.endpoint(PATIENCE_S), worker.keys)
        connect = partial(connected, connection, net.tail_fingerprint, config.seed, embedded)
        sending = choose_sending(connection, net, frames, connect)
        if resume is not None and frames.live:
            raise EexError("--resume: a camera or a video cannot be played again")
        connections = stack.enter_context(contextlib.ExitStack())
        offloader = connections.enter_context(
            connect(warn=warn)
        )  # before the folder is made, in case there is no worker
        folder = make_folder(config.out, config.policy.partition(":")[0]) if resume is None else Path(resume)
        stop = stack.enter_context(interrupts())
        viewer = None if view is None else stack.enter_context(view(config, net, frames, exit_cost))
        cloud = None
        if connection.answer_with is not None and (config.regret or view is not None):
            cloud = image_answers(net, load_answerer(connection.answer_with, "", pick_device(config.device)))
        player = Player(frames, net, config, resolved, exit_cost, sending, show, stop, viewer, cloud)
        own = resolved.policies[0].label
        played = [player.play(own, policies[0], offloader, folder, resume is not None, config.share)]
        for choice, policy in zip(resolved.policies[1:], policies[1:], strict=True):
            if stop() or frames.live:
                break
            connections.close()  # each policy begins with a link that nobody has measured
            played.append(player.play(choice.label, policy, connections.enter_context(connect())))
        reference = None
        if config.regret and not frames.live and not stop() and played[0].tally.frames:
            if cloud is None and (theirs := answerers(*(p.link for p in played))):
                warn(f"regret is not known: the worker answered with a model that is not here, {', '.join(theirs)}")
            else:
                reference = player.hindsight(played[0].tally)
    if not played[0].tally.frames and not stop():
        raise nothing_usable(config, played[0].skipped)
    summary = summarise(config, resolved.price, exit_cost, played, reference, net, interrupted=stop())
    send = {"encoding": sending.encoding and str(sending.encoding), "why": sending.why}
    summary |= {
        "send": send | {"candidates": list(sending.candidates)},
        "source": frames.report(),
        "worker": config.worker != "none",
        "worker_deaths": 0 if worker is None else worker.deaths,
        "folder": str(folder),
    }
    curves = {p.policy: p.tally.curves() for p in played}
    if reference is not None:
        curves["hindsight"] = reference.curves()
    _write_results(folder, summary, curves)
    if config.pictures and (folder / "curves.arrow").exists():
        _draw(folder, frames.schedule.pieces(played[0].tally.frames))
    return summary


def _policies(config: StreamConfig, resolved: Resolved, net: Network) -> list[Policy]:
    """The policy of a run, and those that it is compared with."""
    policies: list[Policy] = []
    for choice in resolved.policies:
        policy = make_policy(choice.policy, choice.options, exits=net.edge_exits, seed=config.seed)
        if policy.priced or not policies:  # rivals that heed no price are played as they are
            policy = keeping(policy, config.aim, choice.label)
        policies.append(policy)
    if config.share:
        check_shares(policies[0], config.policy)
    return policies


def _write_results(folder: Path, summary: dict[str, Any], curves: dict[str, Any]) -> None:
    """Write summary and curves; what cannot be written is named in the summary, under `unrecorded`."""
    try:
        write_json(folder / "summary.json", summary)
        write_curves(folder / "curves.arrow", curves)
    except EexError as error:
        warn(str(error))
        summary["unrecorded"] = "; ".join(filter(None, (summary["unrecorded"], str(error))))


def _draw(folder: Path, pieces: Sequence[Piece]) -> None:
    """Draw pictures from the curves that were written; a lack of pictures is only a warning."""
    try:
        from eex.stream.run.pictures import draw  # matplotlib is not imported where it cannot be: no folder to cache in

        draw(folder, pieces)
    except ModuleNotFoundError as error:  # an edge's installation
        missing = str(error.name).partition(".")[0]
        warn(f"{folder}: no pictures were drawn: {missing} is not installed; pip install 'eex[all]'")
    except Exception as error:  # any: a picture must not cost the results
        warn(f"{folder}: no pictures were drawn: {' '.join(str(error).split()) or type(error).__name__}")


# ---- what a run is made of


@contextlib.contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Hold SIGINT and SIGTERM back, so that no batch is left half done; yields whether one came, as a function.

    A second one gets through. A SIGINT that is ignored, as in a shell's background jobs, stays ignored.
    """
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield came.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def hold(*_: object) -> None:
        came.set()
        restore()

    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, hold)
    try:
        yield came.is_set
    finally:
        restore()


def make_folder(out: Path, name: str) -> Path:
    """A new folder for a run, named by time and policy.

    Raises
    ------
    EexError
        If it cannot be made.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for k in itertools.count():
        folder = out / (f"{stamp}-{name}" if k == 0 else f"{stamp}-{name}-{k + 1}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not out.is_dir():
                raise EexError(f"{out}: is not a folder (--out)") from None
        except OSError as error:
            raise EexError(f"{out}: cannot write there (--out): {error.strerror}") from None
        except ValueError as error:  # a NUL, say
            raise EexError(f"--out {str(out)!a}: is no path: {error}") from None
    raise AssertionError
