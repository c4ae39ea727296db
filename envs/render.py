"""What an environment shows as it goes: thresholds, exits and rewards, as a picture or a line of text."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.errors import EexError

if TYPE_CHECKING:
    from eex.envs.episodes import Episodes

MODES = ("rgb_array", "ansi")
"""What `render` gives: a picture, or a line of text."""
SHOWN = 240
"""Latest steps that a picture shows, two pixels each."""
HEIGHT, STEP = 120, 2
WHITE, GREY, BLACK = (255, 255, 255), (215, 215, 215), (0, 0, 0)
# Okabe and Ito's: exits in turn, the last of them offloaded frames
BLUE, GREEN, ORANGE, RED = (0, 114, 178), (0, 158, 115), (230, 159, 0), (213, 94, 0)


@dataclass(frozen=True)
class Shown:
    """One step: frames played, thresholds, the confidence and exit of its last frame, reward, and sum of rewards."""

    frame: int
    threshold: list[float]
    confidence: float
    exit: int
    reward: float
    total: float


class History:
    """The latest steps of one environment, for `render`."""

    def __init__(self) -> None:
        self._steps: deque[Shown] = deque(maxlen=SHOWN)
        self._total = 0.0

    def add(self, episodes: "Episodes", env: int, reward: float) -> None:
        """Note the step that an environment of some episodes has just played."""
        self._total += reward
        exit = int(episodes.exit[env])
        confidence = float(episodes.confidence[min(exit, episodes.exits - 1), episodes.played[env]])
        threshold = episodes.chosen[:, env].tolist()
        self._steps.append(Shown(episodes.t, threshold, confidence, exit, reward, self._total))

    def shown(self, mode: str | None, exits: int) -> Any:
        """A picture (height, width, 3) or a line of text, by the mode; None without one."""
        if mode == "rgb_array":
            return picture(list(self._steps), exits)
        if mode == "ansi":
            return line(self._steps[-1] if self._steps else None, exits)
        return None


def check_mode(mode: str | None) -> str | None:
    """A render mode, if there is such a one.

    Raises
    ------
    EexError
        If not.
    """
    if mode is not None and mode not in MODES:
        raise EexError(f"render_mode must be one of {', '.join(MODES)}, or None; got {mode!r}")
    return mode


def line(step: Shown | None, exits: int) -> str:
    """A step as text.

    Examples
    --------
    >>> line(Shown(7, [0.8], 0.65, 1, 0.12, 0.5), exits=1)
    'frame 7: threshold 0.80, confidence 0.65, cloud, reward +0.120, total +0.500'
    """
    if step is None:
        return "nothing played yet"
    threshold = " ".join(f"{t:.2f}" for t in dict.fromkeys(step.threshold))
    place = "cloud" if step.exit == exits else f"exit {step.exit + 1}"
    return (
        f"frame {step.frame}: threshold {threshold}, confidence {step.confidence:.2f}, {place}, "
        f"reward {step.reward:+.3f}, total {step.total:+.3f}"
    )


def picture(steps: Sequence[Shown], exits: int) -> NDArray[np.uint8]:
    """The latest steps, (2 * 120, 480, 3).

    Above, in [0, 1]: the threshold at the last edge exit as a black line, each frame's confidence as a dot, coloured by
    where it left: blue, green, orange for exits 1, 2, 3 and beyond, red for the cloud. Below: the sum of rewards.
    """
    canvas = np.full((2 * HEIGHT, SHOWN * STEP, 3), WHITE, dtype=np.uint8)
    canvas[[0, HEIGHT // 2, HEIGHT - 1, -1]] = GREY
    if not steps:
        return canvas
    x = np.arange(len(steps)) * STEP
    for dx in range(STEP):
        _dots(canvas, x + dx, np.array([s.threshold[-1] for s in steps]), 0, BLACK)
    exit, confidence = np.array([s.exit for s in steps]), np.array([s.confidence for s in steps])
    for e in range(exits + 1):
        colour = RED if e == exits else (BLUE, GREEN, ORANGE)[min(e, 2)]
        for dx in range(STEP):
            _dots(canvas, x[exit == e] + dx, confidence[exit == e], 0, colour)
    total = np.array([s.total for s in steps])
    span = total.max() - total.min()
    for dx in range(STEP):
        _dots(canvas, x + dx, (total - total.min()) / (span or 1.0), HEIGHT, BLUE)
    return canvas


def _dots(
    canvas: NDArray[np.uint8], x: NDArray[np.int64], share: NDArray[np.float64], top: int, colour: tuple[int, int, int]
) -> None:
    """Dots at heights in [0, 1] of the panel that begins `top` pixels down."""
    y = top + np.round((1 - np.clip(share, 0, 1)) * (HEIGHT - 3)).astype(int)
    canvas[y, x], canvas[y + 1, x] = colour, colour
