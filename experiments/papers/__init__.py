"""The papers that eex implements, each reproduced by one script: `python -m eex.experiments.papers NAME`."""
