"""What the zygote imports before it forks: torch, transformers, common model classes.

Zygote process. Importing is all the time that a device needs to start, so it is done
once; but whatever is imported here is shared by every device for ever. So: a fixed
list, one thread, no CUDA context, no model class (each loads its own kernels) but the
plain ones that `fused` knows.
"""

from __future__ import annotations

import gc
import importlib
import os

MODULES = (
    "numpy",
    "torch",
    "transformers",
    "transformers.cache_utils",
    "transformers.masking_utils",
    "transformers.modeling_utils",
    "transformers.generation.utils",
    "transformers.models.auto.configuration_auto",
    "transformers.models.auto.modeling_auto",
    "neurond.device.convert",
    "neurond.device.fake",
    "neurond.device.fused",
    "neurond.device.runner",
    "neurond.device.worker",
)

ENVIRONMENT = {
    # read at import: a pool of threads would not survive the fork, and would forbid it
    "OMP_NUM_THREADS": "1",
    # threads that wait must sleep: spinning, two of them on two cores of which one is
    # busy elsewhere decode at a twentieth of their speed
    "OMP_WAIT_POLICY": "PASSIVE",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # a kernel is kept per shape, and every length of a chunk is another shape: with the
    # usual 1024 of each, a device grows by some 300 MB in its first thousand prompts
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
    "LRU_CACHE_CAPACITY": "256",
    "TOKENIZERS_PARALLELISM": "false",
    # `torch.cuda.is_available` asks the driver otherwise, which a fork does not survive
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    # also read at import: nothing of ours is ever fetched by a library
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # weights are placed by our loader; transformers' pool of threads has nothing to do
    "HF_DEACTIVATE_ASYNC_LOAD": "1",
}


def preload() -> None:
    """Import the list, then hide it from the collector so that pages stay shared."""
    os.environ.update(ENVIRONMENT)
    for name in MODULES:
        importlib.import_module(name)
    importlib.import_module("neurond.device.assembly").prepare()
    gc.collect()
    gc.freeze()
