"""How weights change: stream, packing, DeepSpeed engine, loop, checkpoints, evaluation. No Ray."""
