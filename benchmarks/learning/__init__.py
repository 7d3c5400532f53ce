"""What experiments on learning share: data, tasks, the training loop, starts of a memory, and a journal of runs."""
