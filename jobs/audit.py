"""`genlip audit` and `genlip verify-resume`: whether a run read exactly what its plan says."""

from pathlib import Path

from jobs.console import say
from train.audit import Findings, audit_run, verify_resume

EXIT_DIFFERS = 1


def audit(run_dir: Path) -> int:
    """Check a run from its first step to its last. Returns the exit code."""
    return _say(audit_run(run_dir), "every step was read as planned")


def verify(run_dir: Path, num_steps: int) -> int:
    """Check the steps on both sides of the newest checkpoint. Returns the exit code."""
    return _say(verify_resume(run_dir, num_steps), "the resumed stream is the same")


def _say(found: Findings, verdict: str) -> int:
    for line in found.counts:
        say(line)
    for line in found.problems:
        say(f"wrong: {line}")
    if not found.problems:
        say(verdict)
    return EXIT_DIFFERS if found.problems else 0
