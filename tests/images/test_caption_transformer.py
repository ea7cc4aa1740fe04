"""A text encoder that trains: its gradients are clipped per caption, and adapters find it."""

import io
from pathlib import Path

import pyarrow
import pytest
import torch
from follow_steps import sites_of
from image_support import awake, pictures, tiny_module
from lightning.pytorch import Trainer
from PIL import Image
from pyarrow import parquet
from torch import Tensor

from lightning_dp.adapters.attention import Attention
from lightning_dp.adapters.embedder import Embedder
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.images.data.image_data import ImageData
from lightning_dp.images.data.parquet import Parquet
from lightning_dp.images.module import LatentDiffusion
from lightning_dp.nets.caption_transformer import CaptionTransformer
from lightning_dp.nets.tokenizers import Bytes, Tokenizer, WordPieces
from lightning_dp.nets.unet import CrossAttentionUNet
from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.functions import Flat

_WORDS = ("bright", "dark", "stripes")


def _net(tokenizer: Tokenizer, **options) -> CrossAttentionUNet:
    torch.manual_seed(0)
    return CrossAttentionUNet(
        in_channels=1,
        size=8,
        num_classes=0,
        block_out_channels=(8,),
        attention=(True,),
        norm_groups=4,
        num_heads=2,
        text=CaptionTransformer(tokenizer, width=8, depth=2, num_heads=2, head_size=6),
        **options,
    )


def _data(folder: Path, *, tokenizer: Tokenizer | None, count: int = 24) -> ImageData:
    images, labels = pictures(count)
    encoded = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="png")
        encoded.append(file.getvalue())
    folder.mkdir(parents=True, exist_ok=True)
    texts = [f"a {_WORDS[label]} picture" for label in labels]
    for split in ("train", "test"):
        parquet.write_table(pyarrow.table({"image": encoded, "text": texts}), folder / f"{split}-0.parquet")
    source = Parquet(str(folder), caption_column="text")
    return ImageData(source, size=8, batch_size=8, tokenizer=tokenizer)


def _batch(tokenizer: Tokenizer, count: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "images": torch.rand(count, 1, 8, 8, generator=generator) * 2 - 1,
        "labels": torch.full((count,), -1),
        "tokens": tokenizer([["dark", "", "a bright one", "stripes"][i % 4] for i in range(count)]),
    }


def _vocabulary(folder: Path) -> str:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "picture", "##s", *_WORDS]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return str(folder / "vocab.txt")


def test_gradients_are_clipped_per_caption_as_autograd_has_them():
    tokenizer = Bytes(length=10)
    module = tiny_module(net=awake(_net(tokenizer)), noise_draws=2)
    batch = _batch(tokenizer)
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}

    engine = BookKeeping()
    engine.know(sites_of(module, lambda: module.per_example_losses(batch), units=4))
    engine.attach(module, function=Flat(), max_grad_norm=0.1)
    try:
        torch.manual_seed(0)
        engine.expect(unit_weights=torch.ones(4), rows_per_unit=2)
        module.per_example_losses(batch).mean().backward()
        norms, sums = engine.collect(), engine.take()
    finally:
        engine.detach()

    expected = {name: torch.zeros_like(p) for name, p in parameters.items()}
    true_norms = []
    for unit in range(4):
        torch.manual_seed(0)
        loss = module.per_example_losses(batch)[unit]
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        own = {n: g for n, g in zip(parameters, gradients, strict=True) if g is not None}
        norm = torch.stack([g.norm() for g in own.values()]).norm()
        true_norms.append(norm)
        for name, gradient in own.items():
            expected[name] += gradient * (0.1 / norm).clamp_max(1)
    torch.testing.assert_close(norms, torch.stack(true_norms), rtol=1e-4, atol=0)
    assert float(min(true_norms)) > 0.1  # else nothing was clipped
    text = [name for name in sums if ".text." in name]
    assert len(text) == len([name for name in parameters if ".text." in name])
    for name in sums:
        torch.testing.assert_close(sums[name], expected[name], rtol=1e-3, atol=1e-6)
    assert all(float(sums[name].abs().max()) > 0 for name in text)


def test_a_loss_depends_on_its_own_caption_alone():
    tokenizer = Bytes(length=10)
    module = tiny_module(net=awake(_net(tokenizer)), label_dropout=0.0)

    def losses(*captions: str) -> Tensor:
        torch.manual_seed(0)
        return module.per_example_losses({**_batch(tokenizer, 3), "tokens": tokenizer(captions)}).detach()

    base, other = losses("dark", "bright", "x"), losses("dark", "a", "b")
    torch.testing.assert_close(base[0], other[0])
    assert not torch.allclose(base[1:], other[1:])
    module._label_dropout = 1.0
    torch.testing.assert_close(losses("dark", "bright", "x"), losses("", "", ""))


@pytest.mark.parametrize("adapter", [Attention(), Embedder()], ids=["Attention", "Embedder"])
def test_a_private_step_trains_it(adapter, tmp_path):
    tokenizer = WordPieces(_vocabulary(tmp_path), length=6)
    data = _data(tmp_path / "mine", tokenizer=tokenizer)
    assert "captions" not in data.train_dataset[0]
    assert data.privacy_unit().description == "one image of mine with its label and caption"
    module = tiny_module(net=_net(tokenizer), adapter=adapter)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    _fit(tmp_path, module, data, private=True)
    changed = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert any(name.startswith("net.text.") for name in changed)
    unet = {name for name in changed if not name.startswith("net.text.")}
    assert bool(unet) == isinstance(adapter, Attention)
    assert all(".attentions." in name for name in unet)
    labels = torch.full((2,), -1)

    def drawn(*captions: str) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return module.eval().sample(labels, captions=captions or None, generator=generator)

    assert not torch.equal(drawn("dark", "bright"), drawn("stripes", "bright"))
    torch.testing.assert_close(drawn("", ""), drawn())


def _fit(folder: Path, module: LatentDiffusion, data: ImageData, *, private: bool) -> None:
    privacy = DifferentialPrivacy(noise_multiplier=4.0, delta=1e-3, expected_batch_size=8)
    Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[privacy] if private else [],
    ).fit(module, datamodule=data)


def test_what_does_not_fit_is_refused(tmp_path):
    tokenizer = Bytes(length=10)
    for others in (None, Bytes(length=11)):
        data = _data(tmp_path / "mine", tokenizer=others)
        with pytest.raises(ValueError, match=r"data\.tokenizer is .* a caption has to be the same numbers"):
            _fit(tmp_path, tiny_module(net=_net(tokenizer)), data, private=False)
    with pytest.raises(ValueError, match="num_classes is 3 beside a text encoder"):
        CrossAttentionUNet(in_channels=1, size=8, num_classes=3, text=CaptionTransformer(tokenizer))
    with pytest.raises(ValueError, match=r"Bytes\.length is 1"):
        Bytes(length=1)
    with pytest.raises(ValueError, match=r"no_such\.txt is not a file"):
        WordPieces(str(tmp_path / "no_such.txt"))
    (tmp_path / "words.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"has no \[PAD\]"):
        WordPieces(str(tmp_path / "words.txt"))
    with pytest.raises(ValueError, match="width is 6 and num_heads 4"):
        CaptionTransformer(tokenizer, width=6)


def test_tokens_of_either_kind(tmp_path):
    letters = Bytes(length=5)
    assert letters(["äb", ""]).tolist() == [[257, 0xC3, 0xA4, ord("b"), 256], [257, 256, 256, 256, 256]]
    assert letters(["abcdefgh"]).tolist() == [[257, *b"abcd"]]
    pieces = WordPieces(_vocabulary(tmp_path), length=6)
    assert pieces(["A dark pictures", "what"]).tolist() == [[2, 4, 8, 5, 6, 3], [2, 1, 3, 0, 0, 0]]
    assert pieces == WordPieces(_vocabulary(tmp_path), length=6)
    assert pieces != WordPieces(_vocabulary(tmp_path), length=7)
    assert pieces != letters
    assert pieces.vocabulary_size == 10
