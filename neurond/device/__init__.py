"""The device process. Modules of this package alone may import torch.

The package itself, `worker` and `fake` don't: a fake device runs without torch.
"""
