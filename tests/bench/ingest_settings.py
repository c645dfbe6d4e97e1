"""What all sides of the ingest benchmark are asked for. Imports nothing, because each side pays for its imports."""

SHORTEST_SIDE_PX = 256
JPEG_QUALITY = 95
SHARD_SAMPLES = 10_000
"""Rows in a shard of img2dataset, its default, and in a unit of ours."""
TIMEOUT_S = 10
PEER_THREADS = 64
"""img2dataset's downloads at a time: the best of 32, 64 and 128 on the machine of the README's numbers."""
FLOOR_IN_FLIGHT = 64
