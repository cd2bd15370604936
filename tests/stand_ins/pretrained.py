"""Small pretrained models: real classes of the transformers library with random weights, saved as the hub has them."""

import json
from pathlib import Path

import pytest

PIECES = 20  # the most that the small text networks read
_VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 40,
    "patch_size": 8,
}
_TEXT = {
    "vocab_size": 120,
    "hidden_size": 16,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": PIECES,
}


def save_tokenizer(folder: Path, *, masks: bool = True) -> None:
    """Word pieces of single letters, with [CLS] and [SEP], lower case."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz0123456789?!.äöüß"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk_token"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **special,
        model_max_length=PIECES,
        model_input_names=["input_ids", "attention_mask"] if masks else ["input_ids"],
    ).save_pretrained(folder)


def save_processor(folder: Path, **settings) -> None:
    """The file in which a model's own processor stands, as on the hub."""
    rest = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255, "resample": 3}
    mean = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    (folder / "preprocessor_config.json").write_text(json.dumps({**rest, **mean, **settings}))


def save_clip(folder: Path, seed: int = 0) -> Path:
    from transformers import CLIPConfig, CLIPModel

    text = {**_TEXT, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    _save(CLIPModel, CLIPConfig(vision_config=_VISION, text_config=text, projection_dim=12), folder, seed)
    square = {"height": 40, "width": 40}
    save_processor(
        folder, image_processor_type="CLIPImageProcessor", size={"shortest_edge": 40}, crop_size=square,
        do_center_crop=True,
    )  # fmt: skip
    save_tokenizer(folder)
    return folder


def save_siglip(folder: Path, *, masks: bool = False) -> Path:
    from transformers import SiglipConfig, SiglipModel

    text = {**_TEXT, "hidden_size": 24, "projection_size": 24}
    _save(SiglipModel, SiglipConfig(vision_config=_VISION, text_config=text), folder, 1)
    save_processor(folder, image_processor_type="SiglipImageProcessor", size={"height": 40, "width": 40})
    save_tokenizer(folder, masks=masks)
    return folder


def save_siglip2(folder: Path) -> Path:
    from transformers import Siglip2Config, Siglip2Model

    vision = {**_VISION, "num_patches": 25}
    vision.pop("image_size")
    text = {**_TEXT, "hidden_size": 24, "projection_size": 24}
    _save(Siglip2Model, Siglip2Config(vision_config=vision, text_config=text), folder, 2)
    save_processor(folder, image_processor_type="Siglip2ImageProcessor", patch_size=8, max_num_patches=25)
    save_tokenizer(folder)
    return folder


def save_chinese_clip(folder: Path) -> Path:
    from transformers import ChineseCLIPConfig, ChineseCLIPModel

    _save(ChineseCLIPModel, ChineseCLIPConfig(vision_config=_VISION, text_config=_TEXT, projection_dim=12), folder, 3)
    save_processor(
        folder, image_processor_type="ChineseCLIPImageProcessor", size={"height": 40, "width": 40},
        do_center_crop=False,
    )  # fmt: skip
    save_tokenizer(folder)
    return folder


def save_dinov2(folder: Path) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    _save(Dinov2Model, Dinov2Config(**{**_VISION, "image_size": 56}), folder, 4)
    square = {"height": 40, "width": 40}
    save_processor(
        folder, image_processor_type="BitImageProcessor", size={"shortest_edge": 48}, crop_size=square,
        do_center_crop=True,
    )  # fmt: skip
    return folder


def save_bert(folder: Path) -> Path:
    from transformers import BertConfig, BertModel

    _save(BertModel, BertConfig(**_TEXT), folder, 5)
    save_tokenizer(folder)
    return folder


def _save(kind, config, folder: Path, seed: int) -> None:
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(seed)
    model = kind(config).eval()
    with torch.no_grad():  # random starts are so small that every input would look alike, and biases would be zero
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(folder)


_SAVERS = {
    "clip": save_clip,
    "siglip": save_siglip,
    "siglip2": save_siglip2,
    "chinese_clip": save_chinese_clip,
    "dinov2": save_dinov2,
    "bert": save_bert,
}


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """A folder with the small models, one folder each. Read only."""
    folder = tmp_path_factory.mktemp("pretrained")
    for name, save in _SAVERS.items():
        save(folder / name)
    return folder
