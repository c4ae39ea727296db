"""Whether the cloud's replies bear out the edge's confidence: what a run warns of when they do not."""

from typing import Any

import numpy as np

from eex.policies.core.base import Floats
from eex.policies.core.columns import Rows
from eex.policies.core.routing import last_visited

SUMS = ("replies", "contradicted", "edge", "cloud", "squares", "expected", "variance")
"""What is summed over the frames that the cloud replied to: see `compared`."""
LEAST, MARGIN, LEVEL = 100, 0.05, 3.7
"""From how many replies on, from which share of them on, and beyond how many standard deviations a difference counts:
chance alone goes beyond 3.7 once in 10,000 runs of frames that do not depend on each other."""


def compared(rows: Rows) -> Floats:
    r"""The sums over some finished frames, (len(SUMS),).

    Of each frame that the cloud replied to, with the confidence c of the last edge exit that it visited and the cloud's
    d: 1; whether their answers differ; c; d; :math:`(c - d)^2`; :math:`1 - cd`; and the largest variance of an event
    whose chance is at most that.
    """
    of = ~np.isnan(rows.confidence[:, -1])
    if not of.any():
        return np.zeros(len(SUMS))
    edge, cloud, prediction = rows.confidence[of, :-1], rows.confidence[of, -1], rows.prediction[of]
    visited = np.maximum((~np.isnan(edge)).sum(axis=1), 1)
    sure = last_visited(edge, visited)
    differ = prediction[np.arange(len(edge)), visited - 1] != prediction[:, -1]
    chance = 1 - sure * cloud
    variance = np.where(chance < 0.5, chance * (1 - chance), 0.25)
    columns = (np.ones(len(edge)), differ, sure, cloud, (sure - cloud) ** 2, chance, variance)
    return np.array([float(np.sum(column)) for column in columns])


def agreement(sums: Floats) -> dict[str, Any]:
    """As plain values: shares and means over the replies, and whether the edge is overconfident.

    If confidences are chances to be right, and the cloud is right at least as often as the edge, then over the frames
    that the cloud replied to

    - the edge's mean confidence is no higher than the cloud's;
    - their answers agree on c d of the frames at least: on just so many if their mistakes have nothing to do with each
      other, on more if both fail on the same hard frames.

    The edge is overconfident if either is broken by 5 % or more, with 100 replies or more, and by more than 3.7
    standard deviations.
    """
    replies, contradicted, edge, cloud, squares, expected, variance = sums.tolist()
    surer = edge - cloud > max(MARGIN * replies, LEVEL * squares**0.5)
    contradictory = contradicted - expected > max(MARGIN * replies, LEVEL * variance**0.5)
    each = max(replies, 1.0)
    return {
        "replies": int(replies),
        "edge_confidence": edge / each if replies else None,
        "cloud_confidence": cloud / each if replies else None,
        "contradicted_share": contradicted / each if replies else None,
        "expected_at_most": expected / each if replies else None,
        "overconfident": replies >= LEAST and (surer or contradictory),
    }


def warning(found: dict[str, Any]) -> str:
    """A sentence on an overconfident edge; empty if `agreement` did not find one."""
    if not found["overconfident"]:
        return ""
    edge, cloud, contradicted, expected = (
        f"{100 * found[name]:.0f} %"
        for name in ("edge_confidence", "cloud_confidence", "contradicted_share", "expected_at_most")
    )
    return (
        f"warning: the edge is overconfident: on {found['replies']:,} offloaded frames it was {edge} sure, the cloud "
        f"{cloud}, and their answers differed on {contradicted} (expected: {expected} at most); "
        "calibrate the model on images like these (eex-train does), or frames stay on the edge that the cloud would "
        "answer better"
    )
