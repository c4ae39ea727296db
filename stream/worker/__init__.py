"""The worker: answers offloaded frames."""
