"""Bytes to a stored image: recognised by content, decoded in a process of its own, upright, scaled and encoded."""
