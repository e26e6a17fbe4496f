import os

import torch

# Tests run many small operators. Beside other workers of pytest-xdist each has a core to itself.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads()))
