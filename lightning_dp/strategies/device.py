"""Where commands that have no trainer compute."""

import torch


def command_device() -> torch.device:
    """The first NVIDIA or AMD GPU that this process may see, else the CPU.

    Never Apple's MPS, which has no float64: errors are summed and gradients checked in it.
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
