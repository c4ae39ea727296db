"""What chooses thresholds, and the arrays that all rooms share."""
