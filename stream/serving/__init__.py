"""A session over HTTP: answers, settings, health, metrics, and a live page."""
