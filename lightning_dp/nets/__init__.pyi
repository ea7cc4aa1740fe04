from .caption_transformer import CaptionTransformer as CaptionTransformer
from .conditioning.adaln_zero import AdaLNZero as AdaLNZero
from .conditioning.bounded_at_sampling import BoundedAtSampling as BoundedAtSampling
from .conditioning.bounds import (
    Bound as Bound,
    ClampSTE as ClampSTE,
    HardClamp as HardClamp,
    SoftClampBand as SoftClampBand,
    Tanh as Tanh,
)
from .conditioning.dp_aware_adaln_zero import DPAwareAdaLNZero as DPAwareAdaLNZero
from .conditioning.modulation import Conditioning as Conditioning
from .denoising_net import DenoisingNet as DenoisingNet
from .image_dit import ImageDiT as ImageDiT
from .image_net import ImageNet as ImageNet
from .recurrent import GRU as GRU, LSTM as LSTM, RecurrentCell as RecurrentCell
from .series_dit import SeriesDiT as SeriesDiT
from .series_rnn import SeriesRNN as SeriesRNN
from .tokenizers import (
    Bytes as Bytes,
    ClipTokens as ClipTokens,
    Tokenizer as Tokenizer,
    WordPieces as WordPieces,
)
from .unet import CrossAttentionUNet as CrossAttentionUNet, UNet as UNet
