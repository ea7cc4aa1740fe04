"""Language models of transformers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from conformance_models.case import Batch, Case, Step, per_row

_WORDS, _TOKENS = 23, 7


def tokens(rows: int) -> Batch:
    """Words of full length; 0 to 2 are kept for padding and marks."""
    return {"input_ids": torch.randint(3, _WORDS, (rows, _TOKENS))}


def padded_tokens(rows: int) -> Batch:
    """Words of 3 to 7 tokens, padded with a mask."""
    mask = (torch.arange(_TOKENS) < torch.randint(3, _TOKENS + 1, (rows, 1))).long()
    return {"input_ids": tokens(rows)["input_ids"] * mask + 1 - mask, "attention_mask": mask}


def own_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The scalar that the model computes for labels: the words themselves."""
    return model(**batch, labels=batch["input_ids"]).loss


def logits(model: nn.Module, batch: Batch) -> Tensor:
    return per_row(model(**batch).logits)


def hidden(model: nn.Module, batch: Batch) -> Tensor:
    return per_row(model(**batch).last_hidden_state)


def of_transformers(model: str, config: str, **arguments: Any) -> Callable[[], nn.Module]:
    """Builds transformers.`model` from transformers.`config`(**arguments)."""

    def build() -> nn.Module:
        import transformers

        return getattr(transformers, model)(getattr(transformers, config)(**arguments))

    return build


def _case(model: str, config: str, *, step: Step = own_loss, inputs: Any = tokens, **arguments: Any) -> Case:
    return Case("transformers", of_transformers(model, config, **arguments), inputs, step)


_SIZES = {"vocab_size": _WORDS, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
_ENCODER = {
    **_SIZES,
    "intermediate_size": 16,
    "max_position_embeddings": 12,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_DECODER = {
    **_SIZES,
    "intermediate_size": 16,
    "max_position_embeddings": 12,
    "use_cache": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {**_DECODER, "num_key_value_heads": 1}
_GPT2 = {
    "vocab_size": _WORDS,
    "n_embd": 8,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 12,
    "use_cache": False,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_T5 = {
    "vocab_size": _WORDS,
    "d_model": 8,
    "d_kv": 4,
    "d_ff": 16,
    "num_layers": 2,
    "num_heads": 2,
    "dropout_rate": 0.0,
    "use_cache": False,
    "decoder_start_token_id": 0,
}
_BART = {
    "vocab_size": _WORDS,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 12,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "use_cache": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}


def _perceiver_inputs(rows: int) -> Batch:
    return {"inputs": torch.randint(3, _WORDS, (rows, 12))}


TEXT: dict[str, Case] = {
    "GPT-2, tied": _case("GPT2LMHeadModel", "GPT2Config", **_GPT2),
    "GPT-2, per-row losses": _case("GPT2LMHeadModel", "GPT2Config", step=logits, **_GPT2),
    "Llama": _case("LlamaForCausalLM", "LlamaConfig", **_GROUPED),
    "Llama, padded": _case("LlamaForCausalLM", "LlamaConfig", step=logits, inputs=padded_tokens, **_GROUPED),
    "Mistral": _case("MistralForCausalLM", "MistralConfig", sliding_window=4, head_dim=4, **_GROUPED),
    "Mixtral": _case(
        "MixtralForCausalLM", "MixtralConfig", num_local_experts=3, num_experts_per_tok=2, **_GROUPED
    ),
    "OPT": _case(
        "OPTForCausalLM",
        "OPTConfig",
        vocab_size=_WORDS,
        hidden_size=8,
        word_embed_proj_dim=6,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=16,
        max_position_embeddings=12,
        dropout=0.0,
        attention_dropout=0.0,
        layerdrop=0.0,
        use_cache=False,
    ),
    "Phi": _case("PhiForCausalLM", "PhiConfig", partial_rotary_factor=0.5, resid_pdrop=0.0, **_DECODER),
    "Gemma": _case("GemmaForCausalLM", "GemmaConfig", head_dim=4, **_GROUPED),
    "Gemma 2": _case("Gemma2ForCausalLM", "Gemma2Config", head_dim=4, sliding_window=4, **_GROUPED),
    "Qwen2": _case("Qwen2ForCausalLM", "Qwen2Config", **_GROUPED),
    "Falcon": _case(
        "FalconForCausalLM",
        "FalconConfig",
        **_SIZES,
        use_cache=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        max_position_embeddings=12,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "Falcon, alibi": _case(
        "FalconForCausalLM",
        "FalconConfig",
        **_SIZES,
        use_cache=False,
        alibi=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        new_decoder_architecture=False,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "BLOOM": _case(
        "BloomForCausalLM",
        "BloomConfig",
        vocab_size=_WORDS,
        hidden_size=8,
        n_layer=2,
        n_head=2,
        use_cache=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "GPT-NeoX": _case("GPTNeoXForCausalLM", "GPTNeoXConfig", **_DECODER),
    "Mamba": _case(
        "MambaForCausalLM",
        "MambaConfig",
        vocab_size=_WORDS,
        hidden_size=8,
        state_size=4,
        num_hidden_layers=2,
        use_cache=False,
        use_mambapy=False,
    ),
    "RWKV": _case(
        "RwkvForCausalLM",
        "RwkvConfig",
        vocab_size=_WORDS,
        hidden_size=8,
        attention_hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        context_length=12,
        use_cache=False,
    ),
    "BERT, tied": _case("BertForMaskedLM", "BertConfig", **_ENCODER),
    "BERT, padded, per-row losses": _case(
        "BertForMaskedLM", "BertConfig", step=logits, inputs=padded_tokens, **_ENCODER
    ),
    "RoBERTa, padded": _case(
        "RobertaForMaskedLM", "RobertaConfig", step=logits, inputs=padded_tokens, **_ENCODER
    ),
    "DistilBERT": _case(
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        vocab_size=_WORDS,
        dim=8,
        n_layers=2,
        n_heads=2,
        hidden_dim=16,
        max_position_embeddings=12,
        dropout=0.0,
        attention_dropout=0.0,
    ),
    "ALBERT, shared layers": _case(
        "AlbertForMaskedLM", "AlbertConfig", embedding_size=6, classifier_dropout_prob=0.0, **_ENCODER
    ),
    "ELECTRA": _case(
        "ElectraForMaskedLM", "ElectraConfig", embedding_size=6, summary_last_dropout=0.0, **_ENCODER
    ),
    "DeBERTa-v2": _case(
        "DebertaV2ForMaskedLM",
        "DebertaV2Config",
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        position_buckets=4,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        conv_kernel_size=3,
        **_ENCODER,
    ),
    "XLNet": _case(
        "XLNetLMHeadModel",
        "XLNetConfig",
        vocab_size=_WORDS,
        d_model=8,
        n_layer=2,
        n_head=2,
        d_inner=16,
        dropout=0.0,
        summary_last_dropout=0.0,
        use_mems_train=False,
        use_mems_eval=False,
    ),
    "Longformer": _case(
        "LongformerForMaskedLM", "LongformerConfig", attention_window=4, step=logits, **_ENCODER
    ),
    "T5": _case("T5ForConditionalGeneration", "T5Config", **_T5),
    "T5 encoder, padded": _case("T5EncoderModel", "T5Config", step=hidden, inputs=padded_tokens, **_T5),
    "BART": _case("BartForConditionalGeneration", "BartConfig", **_BART),
    "Perceiver": _case(
        "PerceiverForSequenceClassification",
        "PerceiverConfig",
        step=logits,
        inputs=_perceiver_inputs,
        num_latents=5,
        d_latents=8,
        d_model=8,
        num_blocks=1,
        num_self_attends_per_block=1,
        num_self_attention_heads=2,
        num_cross_attention_heads=2,
        attention_probs_dropout_prob=0.0,
        vocab_size=_WORDS,
        max_position_embeddings=12,
        num_labels=3,
    ),
    "CLIP text": _case(
        "CLIPTextModel",
        "CLIPTextConfig",
        step=hidden,
        vocab_size=_WORDS,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=1,
        eos_token_id=2,
    ),
}
