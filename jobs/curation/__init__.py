"""What a selection did, for people: the report, the data set's card, and `genlip inspect`."""
