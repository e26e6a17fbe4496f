import torch

# Tests run many small operators: one thread each, and the machine is left to the other workers.
torch.set_num_threads(min(2, torch.get_num_threads()))
