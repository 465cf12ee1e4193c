"""Published names made uniform: one spelling of a parameter for each family, whoever saved the file.

GPT-2 and BLOOM were published from the bare model, without the `transformer.` prefix that their language-model class
writes; Gemma 3 with vision keeps its text model one level down. Called by safetensors_checkpoint.py.
"""

from __future__ import annotations

from typing import Any

_BARE_FAMILIES = ("gpt2", "bloom")
_MULTIMODAL = ("gemma3",)
_TEXT_PREFIXES = ("language_model.model.", "model.language_model.")
_HEAD_PREFIXES = ("language_model.lm_head.",)
_VISION_PREFIXES = ("vision_tower.", "model.vision_tower.", "multi_modal_projector.", "model.multi_modal_projector.")


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the text model's config: the inner one where a checkpoint carries vision too."""
    inner = config.get("text_config")
    if config.get("model_type") not in _MULTIMODAL or not isinstance(inner, dict):
        return config
    shared = {key: config[key] for key in ("bos_token_id", "eos_token_id", "tie_word_embeddings") if key in config}
    return {"model_type": f"{config['model_type']}_text", **shared, **inner}


def class_name(name: str, model_type: str) -> str | None:
    """Returns the name the family's language-model class uses; None for a parameter of another modality."""
    if model_type in _BARE_FAMILIES and not name.startswith(("transformer.", "lm_head.")):
        return f"transformer.{name}"
    if not model_type.startswith(_MULTIMODAL):
        return name
    if name.startswith(_VISION_PREFIXES):
        return None
    for prefix in _TEXT_PREFIXES:
        if name.startswith(prefix):
            return f"model.{name[len(prefix) :]}"
    for prefix in _HEAD_PREFIXES:
        if name.startswith(prefix):
            return f"lm_head.{name[len(prefix) :]}"
    return name
