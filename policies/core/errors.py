"""What goes wrong for a user of eex, as opposed to a bug in it.

EexError
├── ContractError   a policy, an environment or a source does not keep to its contract
├── ImageError      one image of a source cannot be used; the stream goes on without it
├── ModelError      a model's files are missing, damaged or do not belong together
├── OffloadError    a message or a peer does not follow the protocol
└── SourceLost      a source broke off; what came before it stands
"""


class EexError(ValueError):
    """One line for the user: what went wrong, where, what was expected, what to do. Commands print it and exit 2."""


class ContractError(EexError):
    """A policy, an environment or a source breaks a clause of its contract: one line says which, with the values."""


class ImageError(EexError):
    """One image of a source cannot be used; the stream goes on without it."""


class SourceLost(EexError):
    """A source broke off, such as a camera that was unplugged; what came before it stands."""


class ModelError(EexError):
    """A model's files are missing, damaged or do not belong together."""


class OffloadError(EexError):
    """A message or a peer does not follow the protocol."""
