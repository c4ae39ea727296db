"""Frames on their own clock: a session takes them in as they arrive and answers each as soon as it can."""
