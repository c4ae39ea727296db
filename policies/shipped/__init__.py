"""Trained agents that come with eex: safetensors and JSON cards."""
