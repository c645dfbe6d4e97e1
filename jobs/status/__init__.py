"""`genlip status` and `genlip logs`: a run as its folders tell it; none of its processes needs to be there."""
