"""The papers that eex implements, each reproduced by one script: `eex-paper NAME`."""
