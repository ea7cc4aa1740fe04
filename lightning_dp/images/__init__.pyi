from .augmentation import Augmentation as Augmentation, Flip as Flip, Shift as Shift
from .autoencoder import (
    Autoencoder as Autoencoder,
    Pixels as Pixels,
    SmallAutoencoder as SmallAutoencoder,
    TrainableAutoencoder as TrainableAutoencoder,
)
from .autoencoder_training import AutoencoderTraining as AutoencoderTraining
from .batch import ImageBatch as ImageBatch
from .class_gaussians import ClassGaussians as ClassGaussians
from .data.camelyon import Camelyon17 as Camelyon17
from .data.celeba import CelebA as CelebA
from .data.cifar import CIFAR10 as CIFAR10, CIFAR100 as CIFAR100
from .data.emnist import EMNIST as EMNIST
from .data.image_data import ImageData as ImageData
from .data.image_folder import ImageFolder as ImageFolder
from .data.imagenet import ImageNet32 as ImageNet32, ImageNet64 as ImageNet64
from .data.medmnist import MedMNIST as MedMNIST
from .data.mnist import MNIST as MNIST, FashionMNIST as FashionMNIST
from .data.npz import NPZ as NPZ
from .data.octmnist import OCTMNIST as OCTMNIST
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
from .discriminator import PatchDiscriminator as PatchDiscriminator
from .downstream import SmallCNN as SmallCNN, WideResNet as WideResNet
from .evaluation import Evaluation as Evaluation
from .evolution.autoencoder_embedding import AutoencoderEmbedding as AutoencoderEmbedding
from .evolution.diffusers_api import DiffusersPipelineAPI as DiffusersPipelineAPI
from .evolution.diffusion_api import DiffusionAPI as DiffusionAPI
from .evolution.feature_embedding import FeatureEmbedding as FeatureEmbedding
from .evolution.pixel_embedding import PixelEmbedding as PixelEmbedding
from .evolution.public_images import PublicImages as PublicImages
from .evolution.rendered_shapes import RenderedShapes as RenderedShapes
from .evolution.rendered_text import RenderedText as RenderedText
from .evolution.task import ImageTask as ImageTask
from .latent_autoencoder import KLAutoencoder as KLAutoencoder, VQAutoencoder as VQAutoencoder
from .module import LatentDiffusion as LatentDiffusion
from .perceptual import PerceptualLoss as PerceptualLoss
from .pretrained import PretrainedNet as PretrainedNet
from .sample_evaluation import SampleEvaluation as SampleEvaluation
from .sample_grid import SampleGrid as SampleGrid
from .saved_autoencoder import SavedAutoencoder as SavedAutoencoder
from .stable_diffusion import StableDiffusionUNet as StableDiffusionUNet
