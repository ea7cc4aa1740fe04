from .conditioning_reference import ConditioningReference as ConditioningReference
from .differential_privacy import DifferentialPrivacy as DifferentialPrivacy
from .ema import EMA as EMA
from .gradient_diagnostics import GradientDiagnostics as GradientDiagnostics
from .selection_report import SelectionReport as SelectionReport
from .weights_origin import WeightsOrigin as WeightsOrigin
