"""Models of time series and sound in transformers."""

from typing import Any

import torch
from torch import Tensor, nn

from conformance_models.case import Batch, Case, Step, per_row
from conformance_models.text import hidden, of_transformers


def _case(model: str, config: str, *, inputs: Any, step: Step, **arguments: Any) -> Case:
    return Case("transformers", of_transformers(model, config, **arguments), inputs, step)


def _given_loss(model: nn.Module, batch: Batch) -> Tensor:
    return model(**batch).loss


def _sound(rows: int) -> Batch:
    return {"input_values": torch.randn(rows, 80)}


def _spectrum(rows: int) -> Batch:
    return {"input_features": torch.randn(rows, 10, 20), "labels": torch.randint(3, 23, (rows, 5))}


def _whisper_loss(model: nn.Module, batch: Batch) -> Tensor:
    return model(**batch).loss


def _windows(rows: int) -> Batch:
    return {"past_values": torch.randn(rows, 16, 2), "future_values": torch.randn(rows, 4, 2)}


_LAGS, _CONTEXT, _AHEAD = 3, 8, 4


def _forecasts(rows: int) -> Batch:
    past = _CONTEXT + _LAGS
    return {
        "past_values": torch.rand(rows, past) + 1.0,
        "past_time_features": torch.randn(rows, past, 2),
        "past_observed_mask": torch.ones(rows, past),
        "future_values": torch.rand(rows, _AHEAD) + 1.0,
        "future_time_features": torch.randn(rows, _AHEAD, 2),
        "static_categorical_features": torch.randint(0, 5, (rows, 1)),
    }


_FORECASTER = {
    "prediction_length": _AHEAD,
    "context_length": _CONTEXT,
    "lags_sequence": [1, 2, _LAGS],
    "num_time_features": 2,
    "num_static_categorical_features": 1,
    "cardinality": [5],
    "embedding_dimension": [3],
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "use_cache": False,
}
_WAV2VEC2 = {
    "vocab_size": 12,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": (8, 8),
    "conv_stride": (2, 2),
    "conv_kernel": (5, 3),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "hidden_dropout": 0.0,
    "activation_dropout": 0.0,
    "attention_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
    "mask_time_prob": 0.0,
}
_WHISPER = {
    "vocab_size": 23,
    "num_mel_bins": 10,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_source_positions": 10,
    "max_target_positions": 12,
    "dropout": 0.0,
    "use_cache": False,
    "decoder_start_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
_PATCHTST = {
    "num_input_channels": 2,
    "context_length": 16,
    "prediction_length": 4,
    "patch_length": 4,
    "patch_stride": 4,
    "d_model": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 16,
    "norm_type": "layernorm",
    "attention_dropout": 0.0,
    "positional_dropout": 0.0,
    "path_dropout": 0.0,
    "ff_dropout": 0.0,
    "head_dropout": 0.0,
    "do_mask_input": False,
    "loss": "mse",
}


def _predictions(model: nn.Module, batch: Batch) -> Tensor:
    return per_row(model(past_values=batch["past_values"]).prediction_outputs)


SEQUENCES: dict[str, Case] = {
    "Wav2Vec2": _case("Wav2Vec2Model", "Wav2Vec2Config", inputs=_sound, step=hidden, **_WAV2VEC2),
    "Wav2Vec2, layer norms": _case(
        "Wav2Vec2Model",
        "Wav2Vec2Config",
        inputs=_sound,
        step=hidden,
        **_WAV2VEC2,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
    ),
    "Whisper": _case(
        "WhisperForConditionalGeneration", "WhisperConfig", inputs=_spectrum, step=_whisper_loss, **_WHISPER
    ),
    "PatchTST": _case(
        "PatchTSTForPrediction", "PatchTSTConfig", inputs=_windows, step=_given_loss, **_PATCHTST
    ),
    "PatchTST, channel attention": _case(
        "PatchTSTForPrediction",
        "PatchTSTConfig",
        inputs=_windows,
        step=_predictions,
        **_PATCHTST,
        share_embedding=False,
        channel_attention=True,
        use_cls_token=True,
        positional_encoding_type="random",
    ),
    "PatchTSMixer": _case(
        "PatchTSMixerForPrediction",
        "PatchTSMixerConfig",
        inputs=_windows,
        step=_given_loss,
        context_length=16,
        prediction_length=4,
        patch_length=4,
        patch_stride=4,
        num_input_channels=2,
        d_model=8,
        num_layers=2,
        norm_mlp="LayerNorm",
        dropout=0.0,
        head_dropout=0.0,
        loss="mse",
        mode="mix_channel",
    ),
    "TimeSeriesTransformer": _case(
        "TimeSeriesTransformerForPrediction",
        "TimeSeriesTransformerConfig",
        inputs=_forecasts,
        step=_given_loss,
        **_FORECASTER,
    ),
    "Informer": _case(
        "InformerForPrediction",
        "InformerConfig",
        inputs=_forecasts,
        step=_given_loss,
        **_FORECASTER,
        distil=False,
        sampling_factor=1,
    ),
}
