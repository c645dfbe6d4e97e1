"""Benchmarks against the tools that genlip replaces. Run one with `python -m tests.bench NAME`; see README.md."""
