"""Columns computed later from what is stored: plug-ins, their built-ins, and the files they end in."""
