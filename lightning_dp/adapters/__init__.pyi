from .adapter import Adapter as Adapter
from .attention import Attention as Attention
from .biases import Biases as Biases
from .embedder import Embedder as Embedder
from .full import Full as Full
from .lora import LoRA as LoRA
from .matching import Matching as Matching
from .modulation import ModulationOnly as ModulationOnly
from .output_head import OutputHead as OutputHead
from .saliency import SaliencyLoRA as SaliencyLoRA
from .scores.grad_norm import GradNorm as GradNorm
from .scores.public_score import PublicScore as PublicScore
from .scores.random_score import RandomScore as RandomScore
from .scores.score import FreeScore as FreeScore, PrivateScore as PrivateScore
from .scores.squared import Squared as Squared
from .scores.vote import Vote as Vote
from .several import Several as Several
