"""The models of the conformance scan, by name."""

from conformance_models.adapters import ADAPTERS
from conformance_models.case import Case
from conformance_models.diffusion import DIFFUSION
from conformance_models.images import IMAGES
from conformance_models.sequences import SEQUENCES
from conformance_models.text import TEXT
from conformance_models.torch_layers import LAYERS
from conformance_models.torch_patterns import PATTERNS

CASES: dict[str, Case] = {**TEXT, **SEQUENCES, **IMAGES, **DIFFUSION, **ADAPTERS, **LAYERS, **PATTERNS}
