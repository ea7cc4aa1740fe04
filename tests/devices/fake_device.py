"""A device that isn't there: `torch.cuda` and Lightning find a GPU, and tensors on it are CPU tensors.

What it tells: operators that mix devices, generators on the wrong one or seeded on another (the machine has
a second GPU, which nothing may touch), tensors that numpy could not read, and every wait between host and
device. What it can't: arithmetic of a GPU (nothing is cast under its autocast), several GPUs at work, and
where a checkpoint's tensors are loaded to without a `map_location`.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from labels import GPU, FakeGenerator, labels
from lightning.pytorch.accelerators import CUDAAccelerator
from watched import Seen, Watched


@contextmanager
def fake_device() -> Iterator[Seen]:
    """Inside, there is a GPU; what was seen is complete at the end."""
    seen, generators = Seen(), (FakeGenerator(GPU), FakeGenerator(GPU))

    def seed_all(seed: int) -> None:
        for generator in generators:
            generator.manual_seed(seed)

    cuda = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "device_count": lambda: 2,
        "current_device": lambda: 0,
        "is_current_stream_capturing": lambda: False,
        "default_generators": generators,
        "get_rng_state": lambda device=None: generators[0].get_state(),
        "set_rng_state": lambda state, device=None: generators[0].set_state(state),
        "manual_seed_all": seed_all,
        "is_bf16_supported": lambda *_, **__: True,
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: None,
    }
    accelerator = {
        "setup_device": lambda self, device: None,
        "setup": lambda self, trainer: None,
        "teardown": lambda self: None,
        "is_available": staticmethod(lambda: True),
        "auto_device_count": staticmethod(lambda: 1),
        "parse_devices": staticmethod(lambda devices: [0]),
        "get_parallel_devices": staticmethod(lambda devices: [GPU]),
    }
    with ExitStack() as stack:
        stack.enter_context(labels(seen.copied))
        for name, value in cuda.items():
            stack.enter_context(patch.object(torch.cuda, name, value))
        for name, value in accelerator.items():
            stack.enter_context(patch.object(CUDAAccelerator, name, value))
        for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
            if hasattr(torch.optim.Optimizer, name):  # the one or the other, by torch's version
                stack.enter_context(patch.object(torch.optim.Optimizer, name, lambda self: None))
        stack.enter_context(
            patch(
                "lightning.pytorch.trainer.connectors.accelerator_connector._determine_root_gpu_device",
                lambda devices: GPU,
            )
        )
        stack.enter_context(Watched(seen))
        yield seen
