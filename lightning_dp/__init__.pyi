__version__: str

from .adapters.lora import LoRA as LoRA
from .adapters.saliency import SaliencyLoRA as SaliencyLoRA
from .callbacks.differential_privacy import DifferentialPrivacy as DifferentialPrivacy
from .callbacks.ema import EMA as EMA
from .callbacks.gradient_diagnostics import GradientDiagnostics as GradientDiagnostics
from .diffusion.sampler import Sampler as Sampler
from .images.autoencoder_training import AutoencoderTraining as AutoencoderTraining
from .images.data.image_data import ImageData as ImageData
from .images.module import LatentDiffusion as LatentDiffusion
from .images.stable_diffusion import StableDiffusionUNet as StableDiffusionUNet
from .modules.diffusion_module import DiffusionModule as DiffusionModule
from .nets.conditioning.adaln_zero import AdaLNZero as AdaLNZero
from .nets.conditioning.dp_aware_adaln_zero import DPAwareAdaLNZero as DPAwareAdaLNZero
from .nets.image_dit import ImageDiT as ImageDiT
from .nets.series_dit import SeriesDiT as SeriesDiT
from .nets.unet import CrossAttentionUNet as CrossAttentionUNet
from .privacy.clipping.book_keeping import BookKeeping as BookKeeping
from .privacy.clipping.functions import Automatic as Automatic, Flat as Flat, PerLayer as PerLayer
from .privacy.clipping.one_by_one import OneByOne as OneByOne
from .privacy.ledger.ledger import Ledger as Ledger
from .privacy.plan import PrivacyPlan as PrivacyPlan
from .privacy.units import PrivacyUnit as PrivacyUnit
from .runs.load import load_run as load_run
from .strategies.private_ddp import PrivateDDP as PrivateDDP
from .timeseries.data.ett import ETT as ETT
from .timeseries.data.simulator import HouseholdLoad as HouseholdLoad
from .timeseries.data.smartmeter import SmartMeter as SmartMeter
from .timeseries.data.table import Table as Table
from .timeseries.module import TimeSeriesDiffusion as TimeSeriesDiffusion
