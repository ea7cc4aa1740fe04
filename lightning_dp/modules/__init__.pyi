from .condition import Condition as Condition, TrainingRows as TrainingRows
from .diffusion_module import DiffusionModule as DiffusionModule
