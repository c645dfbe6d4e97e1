"""What a recipe costs at scale: throughput measured here (`genlip bench`), and the arithmetic (`plan --scale`)."""
