"""What both sides of the ingest benchmark are asked for. Imports nothing, because each side pays for its imports."""

LONGEST_SIDE_PX = 256
JPEG_QUALITY = 95
IN_FLIGHT = 32
"""Downloads at the same time; img2dataset has a thread for each."""
