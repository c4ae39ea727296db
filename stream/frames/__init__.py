"""Sources of frames, and their distortion."""
