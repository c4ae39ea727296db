"""What goes wrong for a user of eex, as opposed to a bug in it.

EexError
├── ImageError      one image of a source cannot be used; the stream goes on without it
├── ModelError      a model's files are missing, damaged or do not belong together
└── OffloadError    a message or a peer is not what the protocol says
"""


class EexError(ValueError):
    """One line for the user: what went wrong, where, what was expected, what to do. Commands print it and exit 2."""


class ImageError(EexError):
    """One image of a source cannot be used; the stream goes on without it."""


class ModelError(EexError):
    """A model's files are missing, damaged or do not belong together."""


class OffloadError(EexError):
    """A message or a peer is not what the protocol says."""
