"""What is said where an annotator's optional package is not installed."""

from pipeline.errors import EXIT_ENVIRONMENT, UserError


def missing_package(
    who: str, package: str, error: ImportError, command: str = "pip install 'genlip[curate]'"
) -> UserError:
    """The user's words for an optional package that is not installed."""
    return UserError(
        f"{who} needs the package {package}",
        why=str(error),
        next_step=f"run: {command}",
        exit_code=EXIT_ENVIRONMENT,
    )
