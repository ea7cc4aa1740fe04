from .batch import Batch as Batch
from .bridge import Bridge as Bridge
from .data.base import WindowDataModule as WindowDataModule
from .data.ett import ETT as ETT
from .data.own_table.layout import Covariates as Covariates, Layout as Layout, Long as Long, Wide as Wide
from .data.own_table.reading import Reading as Reading
from .data.own_table.single import Single as Single
from .data.own_table.split import (
    ByCustomer as ByCustomer,
    ByCustomerAndTime as ByCustomerAndTime,
    ByTime as ByTime,
    Split as Split,
)
from .data.simulator import HouseholdLoad as HouseholdLoad
from .data.smartmeter import SmartMeter as SmartMeter
from .data.table import Table as Table
from .day_ensemble import DayEnsemble as DayEnsemble
from .masks import (
    BlackoutImputation as BlackoutImputation,
    Forecast as Forecast,
    Interpolation as Interpolation,
    Mask as Mask,
    Mixture as Mixture,
    PointImputation as PointImputation,
    StepImputation as StepImputation,
    StrideImputation as StrideImputation,
    SubSequenceImputation as SubSequenceImputation,
    Synthesis as Synthesis,
)
from .metrics import CRPS as CRPS, MAE as MAE, MSE as MSE, R2 as R2, Coverage as Coverage
from .module import TimeSeriesDiffusion as TimeSeriesDiffusion
from .normalise import DayMean as DayMean, FixedScale as FixedScale, Normaliser as Normaliser
from .prediction_report import PredictionReport as PredictionReport
from .public_scale import PublicScale as PublicScale
from .released_scale import ReleasedScale as ReleasedScale
from .synthesis_report import SynthesisReport as SynthesisReport
