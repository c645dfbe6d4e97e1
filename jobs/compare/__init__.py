"""`genlip compare`: every objective on the same shards, for the same samples, with several seeds; one report."""
