"""The one error type a user of this package sees."""


class ModelError(ValueError):
    """Bad input to the model package; the message says what, where, why and what to do next."""

    exit_code = 2  # what a command line ends with: wrong input
