"""The one error type a user of this package sees."""


class ModelError(ValueError):
    """Bad input to the model package; the message says what, where, why and what to do next."""
