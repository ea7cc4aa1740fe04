"""peft's adapters on foreign nets; only the adapters train."""

from typing import Any

from torch import nn

from conformance_models.case import Case
from conformance_models.diffusion import DIFFUSION, noised, prompted
from conformance_models.text import TEXT, own_loss, tokens


def _adapted(config: str, base: str = "GPT-2, tied", *, most: int = 65, **arguments: Any) -> Case:
    def build() -> nn.Module:
        import peft

        return peft.get_peft_model(TEXT[base].build(), getattr(peft, config)(**arguments))

    return Case("peft", build, tokens, own_loss, most)


def _unet_lora() -> nn.Module:
    from peft import LoraConfig

    unet: Any = DIFFUSION["UNet2DCondition"].build()
    unet.requires_grad_(False)
    targets = ["to_k", "to_q", "to_v", "to_out.0", "conv1"]
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets))
    return unet


_GPT2 = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
_LLAMA = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
_PROMPT: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}

ADAPTERS: dict[str, Case] = {
    "GPT-2 with LoRA": _adapted("LoraConfig", r=2, **_GPT2),
    "Llama with LoRA": _adapted("LoraConfig", "Llama", r=2, **_LLAMA),
    "Llama with LoRA of embeddings": _adapted(
        "LoraConfig", "Llama", r=2, target_modules=["embed_tokens", "q_proj"]
    ),
    "Llama with DoRA": _adapted("LoraConfig", "Llama", r=2, use_dora=True, **_LLAMA),
    "GPT-2 with DoRA": _adapted("LoraConfig", r=2, use_dora=True, **_GPT2),
    "Llama with AdaLoRA": _adapted("AdaLoraConfig", "Llama", init_r=4, target_r=2, total_step=100, **_LLAMA),
    "Llama with LoHa": _adapted("LoHaConfig", "Llama", r=2, **_LLAMA),
    "Llama with LoKr": _adapted("LoKrConfig", "Llama", r=2, **_LLAMA),
    "GPT-2 with IA3": _adapted(
        "IA3Config",
        target_modules=["c_attn", "mlp.c_proj"],
        feedforward_modules=["mlp.c_proj"],
        fan_in_fan_out=True,
    ),
    "Llama with VeRA": _adapted("VeraConfig", "Llama", r=2, target_modules=["q_proj"], projection_prng_key=0),
    "Llama with OFT": _adapted("OFTConfig", "Llama", oft_block_size=4, r=0, target_modules=["q_proj"]),
    "Llama with BOFT": _adapted(
        "BOFTConfig", "Llama", boft_block_size=4, target_modules=["q_proj", "v_proj"]
    ),
    "Llama with layer norm tuning": _adapted(
        "LNTuningConfig", "Llama", target_modules=["input_layernorm", "norm"]
    ),
    "GPT-2 with prefix tuning": _adapted("PrefixTuningConfig", **_PROMPT),
    "GPT-2 with prefix tuning by an MLP": _adapted(
        "PrefixTuningConfig", **_PROMPT, prefix_projection=True, encoder_hidden_size=6
    ),
    "GPT-2 with prompt tuning": _adapted("PromptTuningConfig", **_PROMPT),
    "GPT-2 with P-tuning": _adapted("PromptEncoderConfig", **_PROMPT, encoder_hidden_size=6),
    "UNet2DCondition with LoRA": Case("peft", _unet_lora, noised, prompted, 40),
}
