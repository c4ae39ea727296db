"""Early-exit models: stages, side branches, experts, calibration, training and the shipped weights."""
