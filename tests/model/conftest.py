"""One thread: the tensors are tiny, and threads that wait for a busy core are far slower than none."""

import torch

torch.set_num_threads(1)
