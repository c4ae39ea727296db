"""The contracts and the arrays that all rooms share: thresholds, outcomes, reward, traces, replay, prices."""
