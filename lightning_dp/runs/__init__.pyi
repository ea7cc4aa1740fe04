from .abilities import (
    Forecaster as Forecaster,
    ForecastRequest as ForecastRequest,
    RunModule as RunModule,
    SampleRequest as SampleRequest,
    SampleWriter as SampleWriter,
    WeightExporter as WeightExporter,
)
from .load import load_run as load_run
from .loaded_run import EvolvedRun as EvolvedRun, LoadedRun as LoadedRun, TrainedRun as TrainedRun
