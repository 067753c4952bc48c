"""What the manifest says about a model: sizes of its decoder, what it hears and sees."""

from __future__ import annotations

from cabochon.audio_model import AudioModel
from cabochon.log_mel import LogMelParameters
from cabochon.manifest import TextModel
from cabochon.vision_model import VisionModel
from cabochon.waveform_frames import WaveformFrameParameters
from cabochon_convert.audio_encoder_onnx import FRAMES_PER_TOKEN
from cabochon_convert.audio_frontend import AudioFrontend
from cabochon_convert.config import ModelConfig
from cabochon_convert.processor import ImageFrontend
from cabochon_convert.text_config import TextConfig


def describe_text(text: TextConfig, context_length: int, *, caps_logits: bool) -> TextModel:
    """Sizes of the decoder.

    Args:
        caps_logits: whether the graph does it already.
    """
    return TextModel(
        vocabulary_size=text.vocabulary_size,
        hidden_size=text.hidden_size,
        layer_count=len(text.layers),
        per_layer_input_size=text.per_layer_input_size,
        context_length=context_length,
        final_logit_softcap=0.0 if caps_logits else text.final_logit_softcap,
    )


def describe_audio(config: ModelConfig, frontend: AudioFrontend | None) -> AudioModel | None:
    """What the model hears; None where it does not, or is not to."""
    if frontend is None:
        return None
    log_mel = frontend.frames if isinstance(frontend.frames, LogMelParameters) else None
    return AudioModel(
        log_mel=log_mel,
        waveform_frames=frontend.frames if isinstance(frontend.frames, WaveformFrameParameters) else None,
        max_samples=frontend.max_samples,
        frames_per_token=FRAMES_PER_TOKEN if log_mel else 1,
        begin_token=config.begin_audio_token,
        soft_token=config.audio_token,
        end_token=config.end_audio_token,
    )


def describe_vision(
    config: ModelConfig, frontend: ImageFrontend | None, *, with_large_budgets: bool
) -> VisionModel | None:
    """What the model sees; None where it does not, or is not to.

    Args:
        with_large_budgets: images may make more tokens than the checkpoint's default.
    """
    vision, end_token = config.vision, config.end_image_token
    if vision is None or frontend is None or end_token is None:
        return None
    default = frontend.default_soft_token_budget
    budgets = tuple(each for each in frontend.soft_token_budgets if each <= default or with_large_budgets)
    return VisionModel(
        patch_size=vision.patch_size,
        pooling_kernel_size=vision.pooling_kernel_size,
        # An image is at most a strip of its tokens; the checkpoint's table goes on far beyond.
        position_limit=budgets[-1] * vision.pooling_kernel_size,
        soft_token_budgets=budgets,
        default_soft_token_budget=default,
        begin_token=config.begin_image_token,
        soft_token=config.image_token,
        end_token=end_token,
    )
