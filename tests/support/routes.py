"""Where frames leave, from what a policy chose: for tests that compare with the one rule."""

from eex.policies.core.routing import walk


def route(confidence, thresholds, run=0):
    """Exit, whether it is the cloud, and edge exits visited, of frames (frames, edge exits + 1) under one run."""
    exit, visited = walk(confidence[:, :-1], thresholds.exit_at[run], thresholds.skip_below[run])
    return exit, exit == confidence.shape[1] - 1, visited
