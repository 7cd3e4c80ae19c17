"""The one error of this package: a sentence for a person, printed without a traceback."""


class LocalError(Exception):
    """Says what was required, what was found, and what to do next."""
