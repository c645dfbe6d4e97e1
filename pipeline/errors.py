"""The one error type that a user of the data side is meant to read."""

EXIT_FAILED_UNITS = 1
EXIT_USAGE = 2
EXIT_ENVIRONMENT = 3
EXIT_PREEMPTED = 75
"""Stopped on request after a checkpoint: the same command goes on (EX_TEMPFAIL of sysexits.h)."""


class UserError(ValueError):
    """A problem that the user can fix: says what, where, why and the next thing to type.

    Args:
        what: What went wrong, in one sentence.
        where: The file, recipe key or store it concerns.
        why: The cause, when it is not plain from `what`.
        next_step: A command or an edit that solves it.
        exit_code: What the command line returns (2 bad recipe or usage, 3 environment).
    """

    def __init__(
        self, what: str, *, where: str = "", why: str = "", next_step: str = "", exit_code: int = EXIT_USAGE
    ) -> None:
        lines = [what]
        if where:
            lines.append(f"  where: {where}")
        if why:
            lines.append(f"  why:   {why}")
        if next_step:
            lines.append(f"  next:  {next_step}")
        super().__init__("\n".join(lines))
        self.message = "\n".join(lines)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[object, ...]:
        # Ray pickles exceptions; the default would call __init__ without the keyword arguments.
        return (_rebuild, (type(self), self.message, self.exit_code))


class StoreError(UserError, OSError):
    """An object store that fails or refuses, in spite of all further tries: for those who deal with OSError as well."""


def _rebuild(kind: type[UserError], message: str, exit_code: int) -> UserError:
    return kind(message, exit_code=exit_code)
