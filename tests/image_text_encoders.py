"""Encoders of images and texts with random weights and a tokenizer of a few words, as transformers writes them."""

import json

import torch
import transformers

LAYER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
WORDS = ["<|startoftext|>", "<|endoftext|>", "<unk>", "a", "photo", "of", "cat", "dog", "bird", "fish"]


def make_folder(folder, kind):
    """An encoder with random weights, what is done to images, and a tokenizer of a few words."""
    torch.manual_seed(0)
    images = {**LAYER, "image_size": 32, "patch_size": 16}
    texts = {
        **LAYER, "vocab_size": len(WORDS), "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1,
        "pad_token_id": 1,
    }  # fmt: skip
    if kind == "clip":
        size = {"projection_dim": 12}
        about = transformers.CLIPConfig(vision_config=images | size, text_config=texts | size, **size)
        transformers.CLIPModel(about).save_pretrained(folder)
    else:
        transformers.SiglipModel(transformers.SiglipConfig(vision_config=images, text_config=texts)).save_pretrained(
            folder
        )
    preparation = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(preparation))
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single=f"{WORDS[0]} $A {WORDS[1]}", special_tokens=[(WORDS[0], 0), (WORDS[1], 1)]
    )
    special = {"bos_token": WORDS[0], "eos_token": WORDS[1], "pad_token": WORDS[1], "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    return folder
