import os

import torch

# Tests run many small operators. Beside other workers of pytest-xdist each has a core to itself, and
# what it starts: threads that wait for each other on taken cores take many times as long.
BESIDE_OTHERS = "PYTEST_XDIST_WORKER" in os.environ
torch.set_num_threads(1 if BESIDE_OTHERS else min(2, torch.get_num_threads()))
if BESIDE_OTHERS:
    os.environ["OMP_NUM_THREADS"] = "1"
