"""For all tests. Its place also puts this folder on the import path: affine_model, small_exams."""

import torch

# The inputs are small: a second thread only waits, and on a busy machine for long.
torch.set_num_threads(1)
