"""The engine that runs a stream: sources, distortions, offloading, records."""
