"""From columns to a selection: expressions, duplicates, evaluation sets, mixes, and why a sample is in or out."""
