"""One torch thread: small problems run many times faster than with several."""

import torch

torch.set_num_threads(1)
