"""From a selection to training shards: globally shuffled, of equal size, each written on its own."""
