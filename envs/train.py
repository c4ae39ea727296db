"""`eex-train-rl`: train an agent in `eex/Threshold-v0` with stable-baselines3, and export it for the stream."""

import dataclasses
import importlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from eex.envs.checkpoint import read_checkpoint, save_checkpoint
from eex.envs.evaluate import held_out, score
from eex.policies.algorithms.agent import CARD, WEIGHTS, save_agent
from eex.policies.core.errors import EexError
from eex.policies.core.files import alone_in, digest_of, take_paths
from eex.policies.core.link import parse_link
from eex.policies.core.options import check_seed, check_threads, check_words
from eex.policies.core.trace import Trace, read_trace
from eex.policies.registry import split_option

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.callbacks import BaseCallback


JUMPING = "20:700, 250:900, 60:600, 500:400, jitter=10"
ALGORITHMS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "ppo": ("stable_baselines3", "PPO", ("grid", "box")),
    "a2c": ("stable_baselines3", "A2C", ("grid", "box")),
    "dqn": ("stable_baselines3", "DQN", ("grid",)),
    "sac": ("stable_baselines3", "SAC", ("box",)),
    "td3": ("stable_baselines3", "TD3", ("box",)),
    "recurrent-ppo": ("sb3_contrib", "RecurrentPPO", ("grid", "box")),
}
"""Package and class of each algorithm, and the actions it can choose."""
# A threshold hardly changes what later frames earn, so rewards are not looked ahead for (gamma = 0); rewards are noisy,
# so batches are large.
PPO = {"n_steps": 32, "batch_size": 8192, "n_epochs": 4, "gamma": 0.0, "ent_coef": 0.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": PPO,
    "recurrent-ppo": PPO,  # n_steps is also how far back the LSTM's gradients reach
    "a2c": {"n_steps": 8, "gamma": 0.0, "normalize_advantage": True},
    "dqn": {"buffer_size": 1_000_000, "batch_size": 4096, "gamma": 0.0, "gradient_steps": 8, "learning_starts": 50_000},
    "sac": {"buffer_size": 1_000_000, "batch_size": 4096, "gamma": 0.0, "gradient_steps": 8, "learning_starts": 50_000},
    "td3": {"buffer_size": 1_000_000, "batch_size": 4096, "gamma": 0.0, "gradient_steps": 8, "learning_starts": 50_000},
}

CHECKPOINT = "checkpoint.safetensors"
"""Name of the file in OUT/training from which a training goes on."""
EPISODES = 2**40
"""Seeds of episodes that a training has to itself."""
RIVALS = {kind: ("ucb", "gain-curve") for kind in ("adaee", "accuracy")} | {"utility": ("ucb", "stop-curve")}
"""Policies that an agent is evaluated beside, by what it was trained for."""


@dataclass(frozen=True)
class TrainRLConfig:
    """Train an agent that chooses thresholds, in eex/Threshold-v0 over recorded traces, and export it.

    The exported agent (safetensors and a JSON card) is the one that scored best in evaluation; play it with
    `eex-stream --policy rl --policy-option model=OUT`. Run the same command again to resume an interrupted training.
    """

    trace: Path
    """Trace to train on, as eex-record writes it."""
    out: Path
    """Folder for the agent; checkpoints go to its folder 'training', which may be deleted afterwards."""
    held_out: Path | None = None
    """Trace to evaluate on; by default the last fifth of each stretch of unchanged distortion, not trained on then."""
    name: str = "agent"
    """Name of the agent, written to its card."""
    algorithm: str = "ppo"
    """ppo, a2c, dqn (grid only), sac or td3 (box only); recurrent-ppo, with an LSTM, needs sb3-contrib (eex[rl])."""
    steps: int = 20_000_000
    """Steps of all environments together."""
    envs: int = 1024
    """Environments side by side."""
    action: Literal["grid", "box"] = "box"
    """Choose one of a grid of thresholds for all exits, or a threshold for each exit."""
    grid: tuple[float, ...] = tuple(np.linspace(0, 1, 21).round(2).tolist())
    """Thresholds of the action 'grid'."""
    window: int = 4
    """Frames for which an action holds in training. In the stream, every frame gets its own, except with an LSTM."""
    reward: Literal["adaee", "utility", "accuracy"] = "adaee"
    """What a frame earns: AdaEE's confidence gain, its utility, or its accuracy less costs (for traces with labels)."""
    overhead: tuple[float, float] = (0.02, 0.5)
    """Lowest and highest price of offloading, drawn for each episode."""
    exit_cost: float = 0.0
    """Price of each edge exit after the first that a frame visits, in units of confidence. AdaEE has none."""
    rounds: int = 2000
    """Frames of an episode."""
    order: Literal["switching", "segments", "resampled", "in-order"] = "switching"
    """Order in which an episode plays the rows of the trace."""
    switch: tuple[int, int] = (500, 3000)
    """Fewest and most frames between switches of the distortion."""
    link: str = JUMPING
    """Round trips, as comma-separated MS:FRAMES; empty if replies come at once."""
    layers: tuple[int, ...] = (64, 64)
    """Widths of the agent's hidden layers."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Activation function after each hidden layer."""
    lstm: int = 64
    """Units of the LSTM before the hidden layers (recurrent-ppo only)."""
    lr: float = 1e-3
    """Learning rate; it falls linearly to 0."""
    setting: tuple[str, ...] = ()
    """Settings of the stable-baselines3 algorithm, as name=value; they override the defaults."""
    evaluate_every: int = 2_000_000
    """Steps between evaluations."""
    evaluate_overheads: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4)
    """Prices of offloading that are evaluated."""
    evaluate_rounds: int = 6000
    """Frames of each evaluation schedule."""
    evaluate_seeds: int = 3
    """Evaluation schedules."""
    tensorboard: bool = False
    """Write TensorBoard's logs to OUT/training/tensorboard."""
    threads: int = 0
    """CPU threads; 0 = all cores."""
    seed: int = 0
    """Seed of all random draws."""
    quiet: bool = False
    """Show no progress, and nothing that libraries warn of."""

    def __post_init__(self) -> None:
        take_paths(self)


Say = Callable[[int, str], None]


def train_rl(config: TrainRLConfig, say: Say = lambda steps, text: None) -> dict[str, Any]:
    """Train as configured, and export the best agent; how it did when evaluated.

    Parameters
    ----------
    say
        Told the steps done and how the last evaluation went, now and then.

    Raises
    ------
    EexError
        If the algorithm is unknown or not installed, a setting does not fit, or a file cannot be read or written.
    """
    maker = algorithm_class(config.algorithm, config.action, config.tensorboard)
    settings = _settings(config)
    check_words(config)
    check_threads(config.threads)
    check_seed(config.seed)
    for name, least in (
        ("steps", 1),
        ("envs", 1),
        ("evaluate_every", 1),
        ("evaluate_seeds", 1),
        ("evaluate_rounds", 1),
        ("lstm", 1),
    ):
        if getattr(config, name) < least:
            raise EexError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(config, name)}")
    if not config.layers or min(config.layers) < 1:
        raise EexError(f"--layers must be widths of at least 1, got {config.layers}")
    trace = read_trace(config.trace)
    if config.held_out is None:
        trace, test = held_out(trace)
    else:
        test = read_trace(config.held_out)
        if test.edge_exits != trace.edge_exits:
            raise EexError(f"--held-out has {test.edge_exits} edge exits, --trace {trace.edge_exits}")
    from eex.envs.sb3 import ThresholdVecEnv

    env = ThresholdVecEnv(
        trace,
        config.envs,
        action=config.action,
        grid=config.grid,
        window=config.window,
        reward=config.reward,
        order=config.order,
        rounds=config.rounds,
        switch=config.switch,
        overhead=config.overhead,
        exit_cost=config.exit_cost,
        link=config.link or None,
    )
    folder = config.out / "training"
    import torch

    if config.threads:
        torch.set_num_threads(config.threads)
    settings_text = json.dumps(_deciding(config), sort_keys=True)
    with alone_in(folder):
        model, best = _make(maker, config, settings, env), None
        if (path := folder / CHECKPOINT).exists():
            checkpoint = read_checkpoint(path)
            if checkpoint.settings != settings_text:
                raise EexError(f"{folder} holds another training; delete it, or name another folder (--out)")
            checkpoint.restore(model)
            best = checkpoint.best
            if best is not None and not all((config.out / name).exists() for name in (WEIGHTS, CARD)):
                raise EexError(f"{config.out}: the best agent of this training is gone; delete {folder} to train anew")
        elif (folder / "last.zip").exists():
            raise EexError(f"{folder} holds a training of an earlier eex; delete it, or name another folder (--out)")
        # the model has given the environment its own seed, which lies next to that of another training
        env.seed(config.seed * EPISODES + model.num_timesteps)
        state = {"steps": model.num_timesteps, "best": best}
        rivals = {name: _score(config, name, test) for name in RIVALS[config.reward]}
        if state["steps"] < config.steps:
            callback = _checkpoints(config, test, rivals, state, settings_text, say)
            model.learn(config.steps - state["steps"], callback=callback, reset_num_timesteps=not state["steps"])
    found: dict[str, Any] = state["best"]
    return found


def algorithm_class(name: str, action: str, tensorboard: bool = False) -> type["BaseAlgorithm"]:
    """The class of an algorithm that can choose such actions.

    Raises
    ------
    EexError
        If there is none, or a package that it needs is not installed.
    """
    if name not in ALGORITHMS:
        close = get_close_matches(name.lower(), list(ALGORITHMS), n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        raise EexError(f"unknown algorithm '{name}'{hint}; expected one of {', '.join(ALGORITHMS)}")
    package, attribute, actions = ALGORITHMS[name]
    if action not in actions:
        raise EexError(f"{name} chooses actions of the kind {' or '.join(actions)}, not {action} (--action)")
    for needed in (package, *(["tensorboard"] * tensorboard)):
        if importlib.util.find_spec(needed) is None:
            raise EexError(f"{needed} is not installed; pip install 'eex[rl]'")
    found: type[BaseAlgorithm] = getattr(importlib.import_module(package), attribute)
    return found


def _settings(config: TrainRLConfig) -> dict[str, Any]:
    """Settings of the algorithm: ours, and the user's."""
    settings = dict(SETTINGS[config.algorithm])
    for pair in config.setting:
        name, text = split_option(pair, "--setting")
        try:
            settings[name] = json.loads(text)
        except json.JSONDecodeError:
            settings[name] = text
    return settings


def _make(maker: Any, config: TrainRLConfig, settings: Mapping[str, Any], env: Any) -> Any:
    import torch

    policy: dict[str, Any] = {
        "net_arch": list(config.layers),
        "activation_fn": {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[config.activation],
    }
    on_policy = config.algorithm in ("ppo", "a2c", "recurrent-ppo")
    if config.action == "box" and on_policy:
        policy |= {"log_std_init": -1.0}
    recurrent = config.algorithm == "recurrent-ppo"
    if recurrent:
        policy |= {"lstm_hidden_size": config.lstm}

    def rate(left: float) -> float:
        # rollouts are counted when they are over, and the last may go beyond the steps
        begun = left + rollout / config.steps
        return config.lr * min(max(begun, 0.0), 1.0)

    try:
        rollout = env.num_envs * int(settings["n_steps"]) if on_policy else 0
        return maker(
            "MlpLstmPolicy" if recurrent else "MlpPolicy",
            env,
            learning_rate=rate,
            policy_kwargs=policy,
            tensorboard_log=str(config.out / "training" / "tensorboard") if config.tensorboard else None,
            seed=config.seed,
            device="cpu",
            **settings,
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise EexError(f"{config.algorithm} does not take these settings: {error}") from None


def _checkpoints(
    config: TrainRLConfig,
    test: Trace,
    rivals: Mapping[str, tuple[float, float]],
    state: Any,
    settings_text: str,
    say: Say,
) -> "BaseCallback":
    """What evaluates, exports the best and keeps the last, now and then and at the end; it updates `state`."""
    from stable_baselines3.common.callbacks import BaseCallback

    from eex.envs.export import exported

    folder = config.out / "training"

    class Checkpoints(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps >= state["steps"] + config.evaluate_every:
                self.keep()
            say(self.num_timesteps, text())
            return True

        def _on_training_end(self) -> None:
            if self.num_timesteps > state["steps"]:
                self.keep()
            say(self.num_timesteps, text())

        def keep(self) -> None:
            state["steps"] = self.num_timesteps
            agent = exported(
                self.model, config.name, {"trained_steps": self.num_timesteps, **json.loads(settings_text)}
            )
            save_agent(agent, folder / "last")
            reward, regret = _score(config, "rl", test, {"model": str(folder / "last")})
            self.logger.record("evaluation/reward", reward)
            self.logger.record("evaluation/regret", regret)
            if state["best"] is None or reward > state["best"]["reward"]:
                found = {"steps": self.num_timesteps, "reward": reward, "regret": regret}
                state["best"] = found | {name: {"reward": r, "regret": g} for name, (r, g) in rivals.items()}
                card = dataclasses.replace(agent.card, evaluated=_evaluated(config, test, state["best"]))
                save_agent(dataclasses.replace(agent, card=card), config.out)
            save_checkpoint(folder / CHECKPOINT, self.model, settings_text, state["best"])

    def text() -> str:
        best = state["best"]
        if best is None:
            return "not evaluated yet"
        others = ", ".join(f"{name} {best[name]['regret']:.2f}" for name in rivals)
        return f"best regret {best['regret']:.2f} per 1,000 frames ({others})"

    return Checkpoints()


def _score(
    config: TrainRLConfig, policy: str, test: Trace, options: Mapping[str, str] | None = None
) -> tuple[float, float]:
    return score(
        policy,
        test,
        config.evaluate_overheads,
        parse_link(config.link) if config.link else None,
        rounds=config.evaluate_rounds,
        switch=config.switch,
        seeds=config.evaluate_seeds,
        exit_cost=config.exit_cost,
        options=options,
        kind=config.reward,
    )


def _evaluated(config: TrainRLConfig, test: Trace, best: Mapping[str, Any]) -> dict[str, Any]:
    """For the card."""
    return {
        "per_1000_frames": dict(best),
        "frames_of_held_out_trace": len(test),
        "distortions": sorted(
            {f"{n}@{v:g}" for n, v in zip(test.distortion.tolist(), test.level.tolist(), strict=True)}
        ),
        "schedules": f"{config.evaluate_seeds} of {config.evaluate_rounds} frames, switching every {config.switch}",
        "overheads": list(config.evaluate_overheads),
        "reward": config.reward,
        "exit_cost": config.exit_cost,
        "link": config.link,
    }


def _deciding(config: TrainRLConfig) -> dict[str, Any]:
    """What decides how training goes, as JSON has it; of traces, their names and contents."""
    plain = dataclasses.asdict(config)
    for name in ("out", "quiet", "threads", *(["lstm"] * (config.algorithm != "recurrent-ppo"))):
        del plain[name]
    for name, value in list(plain.items()):
        if isinstance(value, Path):
            plain |= {name: value.name, f"{name}_sha256": digest_of(value)}
    found: dict[str, Any] = json.loads(json.dumps(plain))
    return found
