from .base_denoiser import BaseDenoiser as BaseDenoiser
from .prediction import Epsilon as Epsilon, Prediction as Prediction, Sample as Sample, Velocity as Velocity
from .sampler import Sampler as Sampler
from .schedule import (
    Cosine as Cosine,
    Linear as Linear,
    NoiseSchedule as NoiseSchedule,
    ScaledLinear as ScaledLinear,
)
