from .augmentation import Augmentation as Augmentation, Flip as Flip, Shift as Shift
from .autoencoder import Autoencoder as Autoencoder, Pixels as Pixels, SmallAutoencoder as SmallAutoencoder
from .autoencoder_training import AutoencoderTraining as AutoencoderTraining
from .batch import ImageBatch as ImageBatch
from .class_gaussians import ClassGaussians as ClassGaussians
from .data.cifar import CIFAR10 as CIFAR10, CIFAR100 as CIFAR100
from .data.image_data import ImageData as ImageData
from .data.image_folder import ImageFolder as ImageFolder
from .data.mnist import MNIST as MNIST, FashionMNIST as FashionMNIST
from .data.npz import NPZ as NPZ
from .data.parquet import Parquet as Parquet
from .data.public28 import (
    Clothing as Clothing,
    KannadaDigits as KannadaDigits,
    NotMNIST as NotMNIST,
    Omniglot as Omniglot,
)
from .data.source import ImageSource as ImageSource, Joined as Joined
from .data.tar_shards import TarShards as TarShards
from .diffusers_autoencoder import DiffusersAutoencoder as DiffusersAutoencoder
from .downstream import SmallCNN as SmallCNN, WideResNet as WideResNet
from .evolution.autoencoder_embedding import AutoencoderEmbedding as AutoencoderEmbedding
from .evolution.diffusion_api import DiffusionAPI as DiffusionAPI
from .evolution.feature_embedding import FeatureEmbedding as FeatureEmbedding
from .evolution.pixel_embedding import PixelEmbedding as PixelEmbedding
from .evolution.public_images import PublicImages as PublicImages
from .evolution.task import ImageTask as ImageTask
from .module import LatentDiffusion as LatentDiffusion
from .pretrained import PretrainedNet as PretrainedNet
from .sample_grid import SampleGrid as SampleGrid
from .stable_diffusion import StableDiffusionUNet as StableDiffusionUNet
