"""What happens to data: sources, fetch, decode, filters, shards, the store. No Ray, no torch."""

from pipeline.errors import UserError
from pipeline.filters import Candidate, Filter, register

__all__ = ["Candidate", "Filter", "UserError", "register"]
