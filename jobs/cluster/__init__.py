"""Runs on a cluster: what a recipe says of one, the files and requests that start a run there, and its metrics."""
