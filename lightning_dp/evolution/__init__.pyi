from .api import SampleAPI as SampleAPI
from .embedding import Embedding as Embedding
from .evolution import PrivateEvolution as PrivateEvolution
from .task import EvolutionTask as EvolutionTask
