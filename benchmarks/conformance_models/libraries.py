"""Imports what most cases need, once, in the process that the others are forked from."""

import diffusers.models.autoencoders.autoencoder_kl
import diffusers.models.transformers.transformer_2d
import diffusers.models.unets.unet_2d_condition
import peft
import timm
import torchvision.models
import transformers.modeling_utils
import transformers.models.auto.modeling_auto

__all__ = ["diffusers", "peft", "timm", "torchvision", "transformers"]
