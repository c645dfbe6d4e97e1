"""The stream: which samples a run reads, in which rows, and the threads that make tensors of them."""
