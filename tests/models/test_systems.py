"""Third-party encoders: cards, loaders on random weights in their own formats, and the common interface."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import nn

from stampy import datasets, models, tl
from stampy.models._systems import gene_encoders as _scgpt
from stampy.models._systems import hub as _hub
from stampy.models._systems import image_encoders as _language
from stampy.models._systems import image_encoders as _vision
from stampy.models._systems.catalogue import CARDS
from stampy.models._systems.gene_encoders import CONTEXT, ranked_by_ratio

QUIET = {"show_progress_bar": False, "device": "cpu"}
TIMM = ["uni", "uni2-h", "h-optimus-0", "virchow2", "mstar"]
IMAGE = [*TIMM, "conch", "plip", "omiclip", "pixels"]
GENE = ["scgpt-spatial", "nicheformer"]
SMALL_VIT = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 28, "patch_size": 14, "mlp_ratio": 4.0}
GENES = datasets.toy(n_spots=60).var["gene_ids"].tolist()[:200]
N_GENES = len(GENES)


def draw(shapes, seed=0):
    """A state dict of random numbers by name and shape."""
    rng = torch.Generator().manual_seed(seed)
    return {k: torch.randn(s, generator=rng) * 0.1 for k, s in shapes.items()}


def randomise(module, seed=0):
    """The state dict of a module, filled with random numbers (also where it starts from zeros or ones)."""
    return draw({k: v.shape for k, v in module.state_dict().items() if v.is_floating_point()}, seed)


def linear(name, out, into):
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name, width):
    return linear(name, width, width) | {f"{name}.weight": (width,)}


def tiles(n, size, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8))


def preprocess(pixels, card):
    """The usual way, by torchvision."""
    from torchvision.transforms.v2 import functional as tv

    images = tv.to_dtype(pixels.permute(0, 3, 1, 2), torch.float32, scale=True)
    return tv.normalize(images, list(card.mean), list(card.std))


# Each writer puts weights of a small variant into `folder` in the system's own format; it gives card, path and tensors.


def write_vit(name, folder):
    import timm
    from timm.layers import SwiGLUPacked

    full = CARDS[name]
    architecture = {**full.architecture, **SMALL_VIT}
    layers = {"SwiGLUPacked": SwiGLUPacked, "SiLU": nn.SiLU}
    arguments = {k: layers.get(v, v) if isinstance(v, str) else v for k, v in architecture.items() if k != "pool"}
    vit = timm.create_model(arguments.pop("backbone"), num_classes=0, **arguments)
    vit.load_state_dict(randomise(vit))
    dim = 32 if name == "virchow2" else 16
    card = replace(full, architecture=architecture, dim=dim, feature_dim=dim, size_px=28)
    path = folder / full.files[-1]
    torch.save(vit.state_dict(), path)
    return card, path, vit.eval()


def pooler(name, width, context, n):
    square = {f"{name}.attn.{p}_proj_weight": (width, c) for p, c in (("q", width), ("k", context), ("v", context))}
    out = {f"{name}.attn.in_proj_bias": (3 * width,)} | linear(f"{name}.attn.out_proj", width, width)
    return {f"{name}.query": (n, width)} | square | out | norm(f"{name}.ln_q", width) | norm(f"{name}.ln_k", context)


def conch_shapes(width, depth, embedding, caption, n_places, patch=16):
    """Names of CONCH's checkpoint, the text side cut short."""
    shapes = {
        "visual.proj_contrast": (embedding, embedding), "visual.trunk.cls_token": (1, 1, width),
        "visual.trunk.pos_embed": (1, n_places + 1, width), "logit_scale": (),
        "visual.trunk.patch_embed.proj.weight": (width, 3, patch, patch),
        "visual.trunk.patch_embed.proj.bias": (width,), "text.cls_emb": (8,), "text.token_embedding.weight": (9, 8),
        "text_decoder.ln_final.weight": (8,), "text.transformer.resblocks.0.ln_1.bias": (8,),
    }  # fmt: skip
    for i in range(depth):
        block = f"visual.trunk.blocks.{i}"
        shapes |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
        shapes |= linear(f"{block}.attn.qkv", 3 * width, width) | linear(f"{block}.attn.proj", width, width)
        shapes |= linear(f"{block}.mlp.fc1", 4 * width, width) | linear(f"{block}.mlp.fc2", width, 4 * width)
    shapes |= (
        norm("visual.trunk.norm", width) | norm("visual.ln_contrast", embedding) | norm("visual.ln_caption", caption)
    )
    shapes |= pooler("visual.attn_pool_contrast", embedding, width, 1)
    return shapes | pooler("visual.attn_pool_caption", caption, width, 4)


def write_conch(name, folder):
    architecture = {"width": 16, "depth": 1, "heads": 2, "embedding": 8, "caption": 16}
    card = replace(CARDS[name], architecture=architecture, dim=8, feature_dim=8, size_px=32)
    tensors = draw(conch_shapes(16, 1, 8, 24, n_places=16))  # as for 64 px: to be resampled
    path = folder / "pytorch_model.bin"
    torch.save(tensors, path)
    return card, path, tensors


CLIP_VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 16, "projection_dim": 8,
}  # fmt: skip


def write_plip(name, folder):
    from transformers import CLIPConfig, CLIPModel

    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "vocab_size": 99, "projection_dim": 8}  # fmt: skip
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=CLIP_VISION, projection_dim=8))
    clip.load_state_dict(randomise(clip), strict=False)
    clip.save_pretrained(folder, safe_serialization=True)
    card = replace(CARDS[name], architecture=CLIP_VISION, dim=8, feature_dim=16, size_px=32)
    return card, folder / "model.safetensors", clip.eval()


COCA = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 16, "output_tokens": True,
                   "attentional_pool": True, "attn_pooler_heads": 2},
    "text_cfg": {"context_length": 7, "vocab_size": 50, "width": 8, "heads": 2, "layers": 1, "embed_cls": True,
                 "output_tokens": True},
    "multimodal_cfg": {"context_length": 7, "vocab_size": 50, "width": 8, "heads": 2, "layers": 1,
                       "attn_pooler_heads": 2},
}  # fmt: skip


def write_omiclip(name, folder):
    import open_clip

    coca = open_clip.CoCa(**COCA)
    coca.load_state_dict(randomise(coca))
    path = folder / "checkpoint.pt"
    wrapped = {f"module.{k}": v for k, v in coca.state_dict().items()}  # as open_clip's training leaves it
    torch.save(
        {"epoch": 3, "name": "run", "state_dict": wrapped, "loss": np.float64(0.5), "optimizer": {"state": {}}}, path
    )
    card = replace(CARDS[name], architecture=COCA, dim=8, feature_dim=8, size_px=32)
    return card, path, coca.eval()


def tangle_shapes(width, hidden, heads=0, in_dim=16):
    sizes = [(in_dim, width), (width, width)] + ([(width, width * heads)] if heads else [])
    shapes = {}
    for i, (a, b) in enumerate(sizes):
        shapes |= linear(f"wsi_embedder.pre_attn.{4 * i}", b, a) | norm(f"wsi_embedder.pre_attn.{4 * i + 1}", b)
    for net in [f"attn.{i}" for i in range(heads)] or ["attn"]:
        name = f"wsi_embedder.{net}.attention"
        shapes |= linear(f"{name}_a.0", hidden, width) | linear(f"{name}_b.0", hidden, width)
        shapes |= linear(f"{name}_c", 1, hidden)
    if heads:
        shapes |= linear("wsi_embedder.proj_multihead", width, width * heads)
    return shapes | linear("rna_embedder.blocks.0.0", 5, 7) | linear("mean_projector.layers", 4, width)


def write_tangle(name, folder, heads=0):
    tensors = draw(tangle_shapes(12, 6, heads))
    torch.save({f"module.{k}": v.bfloat16() for k, v in tensors.items()}, folder / "model.pt")
    (folder / "config.json").write_text(json.dumps({"activation": "softmax", "n_heads": heads or 1}))
    return CARDS[name], folder / "model.pt", {k: v.bfloat16().float() for k, v in tensors.items()}


def write_scgpt(name, folder):
    width, hidden, tokens = 16, 24, {gene: i for i, gene in enumerate(GENES)}
    tokens |= {"<pad>": len(GENES), "<cls>": len(GENES) + 1, "<eoc>": len(GENES) + 2}
    shapes = {"encoder.embedding.weight": (len(tokens), width), "flag_encoder.weight": (2, width)}
    shapes |= norm("encoder.enc_norm", width) | linear("value_encoder.linear1", width, 1)
    shapes |= linear("value_encoder.linear2", width, width) | norm("value_encoder.norm", width)
    for i in range(2):
        layer = f"transformer_encoder.layers.{i}"
        shapes |= linear(f"{layer}.self_attn.Wqkv", 3 * width, width)
        shapes |= linear(f"{layer}.self_attn.out_proj", width, width) | linear(f"{layer}.linear1", hidden, width)
        shapes |= (
            linear(f"{layer}.linear2", width, hidden) | norm(f"{layer}.norm1", width) | norm(f"{layer}.norm2", width)
        )
    shapes |= linear("decoder.moe.experts.0.fc.0", width, width) | linear("decoder.moe.gate.gate", 4, width)
    shapes |= linear("mvc_decoder.gene2query", width, width) | {"impute_mvc_decoder.W.weight": (width, width)}
    tensors = draw(shapes)
    torch.save(tensors, folder / "best_model.pt")
    (folder / "vocab.json").write_text(json.dumps(tokens))
    sizes = {"embsize": width, "nheads": 2, "d_hid": hidden, "nlayers": 2, "pad_value": -2, "n_layers_cls": 3}
    (folder / "args.json").write_text(json.dumps(sizes))
    means = pd.DataFrame({"mean": np.linspace(0.5, 3, len(GENES)), "std": 1.0}, index=range(len(GENES)))
    means.iloc[:-3].to_csv(folder / "all_dict_mean_std.csv")  # three genes have no mean
    return replace(CARDS[name], dim=16, feature_dim=16), folder, (tensors, tokens, means)


def write_nicheformer(name, folder):
    width, hidden, n_tokens = 16, 24, len(GENES) + 30
    shapes = {"embeddings.weight": (n_tokens + 5, width), "positional_embedding.weight": (40, width)}
    for layer in ("encoder_layer", "encoder.layers.0", "encoder.layers.1"):
        shapes |= {
            f"{layer}.self_attn.in_proj_weight": (3 * width, width),
            f"{layer}.self_attn.in_proj_bias": (3 * width,),
        }
        shapes |= linear(f"{layer}.self_attn.out_proj", width, width) | linear(f"{layer}.linear1", hidden, width)
        shapes |= (
            linear(f"{layer}.linear2", width, hidden) | norm(f"{layer}.norm1", width) | norm(f"{layer}.norm2", width)
        )
    shapes |= linear("classifier_head", n_tokens, width) | linear("pooler_head", width, width)
    tensors = draw(shapes | linear("cls_head", 164, width))
    torch.save({"state_dict": tensors, "hyper_parameters": {"nheads": 2}, "epoch": 1}, folder / "nicheformer.ckpt")
    genes = pd.DataFrame({"gene_id": GENES, "symbol": "", "divisor": np.linspace(0.5, 3, len(GENES))})
    genes.to_csv(folder / "genes.tsv", sep="\t", index=False)
    card = replace(CARDS[name], architecture={"heads": 2}, dim=16, feature_dim=16)
    return card, folder / "nicheformer.ckpt", (tensors, genes)


WRITERS = dict.fromkeys(TIMM, write_vit) | {
    "conch": write_conch, "plip": write_plip, "omiclip": write_omiclip, "tangle": write_tangle,
    "scgpt-spatial": write_scgpt, "nicheformer": write_nicheformer,
}  # fmt: skip
NEEDS = {"plip": "transformers", "omiclip": "open_clip"}


@pytest.fixture(scope="module")
def toy(toy):
    """The toy section with the genes of the small systems and a few more."""
    return toy[:, :205].copy()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Weights of a system, written once: (card, path, source)."""
    done = {}

    def give(name):
        if name in NEEDS:
            pytest.importorskip(NEEDS[name])
        if name not in done:
            done[name] = WRITERS[name](name, tmp_path_factory.mktemp(name))
        return done[name]

    return give


def loaded(written, name):
    if name == "pixels":
        return models.load(name, device="cpu"), None
    card, path, origin = written(name)
    return models.load_system(card, path, device="cpu"), origin


# Cards


def test_the_table():
    table = models.systems()
    assert table.index.tolist() == list(CARDS)
    assert {*IMAGE, *GENE, "tangle", "stamp-g", "stamp-v", "stamp-f", "stnet", "egn", "pca"} <= set(table.index)
    assert table.loc["mstar", ["TCGA-LUAD", "DLPFC"]].tolist() == ["yes", "unknown"]
    assert models.systems("slide").index.tolist() == ["tangle"]
    with pytest.raises(ValueError, match="`modality` must be one of"):
        models.systems("sound")


@pytest.mark.parametrize("name", list(CARDS))
def test_cards_are_complete(name):
    card = models.card(name)
    assert card.licence
    assert card.trained_on
    assert (card.size_px is None) == (card.tile_um is None) == (card.mean is None) == (card.std is None)
    assert (card.size_px is not None) == (card.modality in ("image", "fused", "predictor"))
    if card.gate in ("gated", "open", "unclear"):
        assert card.weights_at
        assert card.citation
    assert card.dim or card.modality == "predictor"
    assert name in WRITERS or card.loader in ("stampy", "scanpy") or card.modality == "predictor"


def test_names():
    assert models.card("uni:/somewhere/x.bin").title == "UNI"
    with pytest.raises(ValueError, match=r"Did you mean .*'uni2-h'"):
        models.card("uni2")
    with pytest.raises(ValueError, match="Did you mean 'virchow2'"):
        models.load("virchow")
    with pytest.raises(ValueError, match="`dataset` must be one of"):
        models.card("uni").has_seen("my data")


FULL = {  # embedding size is checked by the dry run; numbers of parameters by counting
    **dict.fromkeys(TIMM, lambda card: _vision.ViT(card)),
    "conch": lambda card: _language.Conch(card),
    "plip": lambda card: _language.Plip(card),
    "omiclip": lambda card: _language.OmiClip(card, _language.build_coca(card).visual),
}


@pytest.mark.parametrize("name", list(FULL))
def test_real_architectures(name):
    """The real sizes, on the meta device: parameters and size of the output are those of the card."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    card = models.card(name)
    with torch.device("meta"):
        system = FULL[name](card).eval()
        features = system.image_features(torch.empty(2, 3, card.size_px, card.size_px))
        assert features.shape == (2, card.feature_dim)
        assert system.project_images(features).shape == (2, card.dim)
    assert sum(p.numel() for p in system.parameters()) == card.parameters


def test_real_names_of_conch():
    with torch.device("meta"):
        found = _language.Conch(models.card("conch")).visual.state_dict()
    shapes = conch_shapes(768, 12, 512, 768, n_places=14 * 14)
    # pooling for captions has as many channels as the ViT, which changes the names of its weights, but it is not loaded
    expected = {
        k.removeprefix("visual."): s for k, s in shapes.items() if k.startswith("visual.") and "caption" not in k
    }
    assert {k: tuple(v.shape) for k, v in found.items()} == expected


def test_sizes_of_stamp_nicheformer_and_mini():
    with torch.device("meta"):
        stamp = models.Stamp(models.StampConfig(gene=models.GeneConfig(), image=models.ImageConfig()))
    for name, model in (("stamp", stamp), ("mini", models.load("stampy-mini", device="cpu"))):
        encoder = sum(p.numel() for k, p in model.gene.named_parameters() if not k.startswith(("igr", "cgr")))
        gene = encoder + sum(p.numel() for p in model.gene_head.parameters())
        patch = sum(p.numel() for k, p in model.image.named_parameters() if not k.startswith("ref_pos_embed"))
        image = patch + sum(p.numel() for p in model.patch_head.parameters())
        if name == "mini":
            assert gene + image == models.card("stampy-mini").parameters
            features = model.gene_head.in_features + model.patch_head.in_features
            assert features == models.card("stampy-mini").feature_dim
        else:
            assert encoder == models.card("nicheformer").parameters
            counted = [models.card(f"stamp-{x}").parameters for x in "gvf"]
            assert [gene, image, gene + image] == counted


# Image encoders


@pytest.mark.parametrize("name", IMAGE)
def test_image_contract(written, name):
    system, _ = loaded(written, name)
    pixels = tiles(5, system.size_px)
    assert system.name == name
    assert not system.training
    with torch.inference_mode():
        torch.testing.assert_close(system.normalize(pixels), preprocess(pixels, system.card), atol=1e-5, rtol=1e-5)
        found = system.embed_images(pixels)
        assert found.shape == (5, system.card.dim)
        assert found.dtype == torch.float32
        assert system.embed_images(pixels, level="feature").shape == (5, system.card.feature_dim)
        one = torch.cat([system.embed_images(pixels[i : i + 1]) for i in range(5)])
        torch.testing.assert_close(one, found, atol=1e-5, rtol=1e-4)
    assert found.std(0).max() > 1e-4  # vectors depend on the tiles
    if name in ("conch", "plip", "omiclip"):
        torch.testing.assert_close(found.norm(dim=1), torch.ones(5))
    with pytest.raises(ValueError, match="Tiles must be uint8"):
        system.embed_images(pixels.float())
    with pytest.raises(ValueError, match=f"{system.size_px}, {system.size_px}, 3"):
        system.embed_images(pixels[:, :-1])


@pytest.mark.parametrize("name", TIMM)
def test_tokens_used_as_features(written, name):
    system, vit = loaded(written, name)
    pixels = tiles(3, 28)
    with torch.inference_mode():
        tokens = vit.forward_features(preprocess(pixels, system.card))
        expected = tokens[:, 0]
        if name == "virchow2":  # class token, four registers, then the places
            expected = torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], dim=1)
        found = system.embed_images(pixels)
    assert tokens.shape[1] == 4 + {"uni2-h": 9, "virchow2": 5, "h-optimus-0": 5}.get(name, 1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_plip_is_clip(written):
    system, clip = loaded(written, "plip")
    pixels = tiles(3, 32)
    with torch.inference_mode():
        found = clip(pixel_values=preprocess(pixels, system.card), input_ids=torch.tensor([[0, 1, 98]])).image_embeds
        torch.testing.assert_close(system.embed_images(pixels), found, atol=1e-5, rtol=1e-4)


def test_plip_of_an_old_file(written, tmp_path):
    card, _, clip = written("plip")
    old = clip.state_dict() | {
        f"{side}_model.embeddings.position_ids": torch.arange(5)[None] for side in ("text", "vision")
    }
    torch.save(old, tmp_path / "pytorch_model.bin")
    system = models.load_system(card, tmp_path, device="cpu")
    assert system.source.endswith("pytorch_model.bin")


def test_omiclip_is_coca(written):
    system, coca = loaded(written, "omiclip")
    pixels = tiles(3, 32)
    with torch.inference_mode():
        images = preprocess(pixels, system.card)
        torch.testing.assert_close(
            system.embed_images(pixels), coca.encode_image(images, normalize=True), atol=1e-5, rtol=1e-4
        )
        feature = system.embed_images(pixels, level="feature")
        projected = coca.encode_image(images, normalize=False)
    torch.testing.assert_close(feature @ coca.visual.proj.detach(), projected, atol=1e-5, rtol=1e-4)


def test_conch_pools_by_its_query(written):
    from timm.layers import resample_abs_pos_embed
    from timm.models.vision_transformer import VisionTransformer

    system, tensors = loaded(written, "conch")
    t = {k.removeprefix("visual."): v for k, v in tensors.items() if k.startswith("visual.")}
    trunk = VisionTransformer(img_size=32, patch_size=16, embed_dim=16, depth=1, num_heads=2, num_classes=0).eval()
    t["trunk.pos_embed"] = resample_abs_pos_embed(
        t["trunk.pos_embed"], [2, 2], num_prefix_tokens=1, interpolation="bilinear", antialias=False
    )
    trunk.load_state_dict({k.removeprefix("trunk."): v for k, v in t.items() if k.startswith("trunk.")})
    a, pixels = "attn_pool_contrast", tiles(3, 32)
    with torch.inference_mode():
        tokens = trunk.forward_features(preprocess(pixels, system.card))
        keys = F.layer_norm(tokens, (16,), t[f"{a}.ln_k.weight"], t[f"{a}.ln_k.bias"])
        query = F.layer_norm(t[f"{a}.query"], (8,), t[f"{a}.ln_q.weight"], t[f"{a}.ln_q.bias"])
        bias = t[f"{a}.attn.in_proj_bias"].split(8)
        q, k, v = (
            x @ t[f"{a}.attn.{n}_proj_weight"].T + b for x, n, b in zip((query, keys, keys), "qkv", bias, strict=True)
        )
        heads = [x.unflatten(-1, (8, 1)).transpose(-3, -2) for x in (q.expand(3, 1, 8), k, v)]
        pooled = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)[:, 0]
        pooled = pooled @ t[f"{a}.attn.out_proj.weight"].T + t[f"{a}.attn.out_proj.bias"]
        feature = F.layer_norm(pooled, (8,), t["ln_contrast.weight"], t["ln_contrast.bias"])
        torch.testing.assert_close(system.embed_images(pixels, level="feature"), feature, atol=1e-5, rtol=1e-4)
        embedding = F.normalize(feature @ t["proj_contrast"], dim=1)
        torch.testing.assert_close(system.embed_images(pixels), embedding, atol=1e-5, rtol=1e-4)


def test_pixels_are_the_tile():
    flat = torch.full((1, 32, 32, 3), 51, dtype=torch.uint8)
    flat[..., 0] = 255
    found = models.load("pixels", device="cpu").embed_images(flat).view(64, 3)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.2, 0.2]]).expand(64, 3))


# Slide encoders


@pytest.mark.parametrize("heads", [0, 2])
def test_tangle(tmp_path, heads):
    card, path, tensors = write_tangle("tangle", tmp_path, heads)
    system = models.load_system(card, path.parent, device="cpu")
    t = {k.removeprefix("wsi_embedder."): v for k, v in tensors.items()}
    x = features = torch.randn(9, 16, generator=torch.Generator().manual_seed(1))
    for i in range(3 if heads else 2):
        x = x @ t[f"pre_attn.{4 * i}.weight"].T + t[f"pre_attn.{4 * i}.bias"]
        x = F.gelu(F.layer_norm(x, x.shape[1:], t[f"pre_attn.{4 * i + 1}.weight"], t[f"pre_attn.{4 * i + 1}.bias"]))
    pooled = []
    for h, net in enumerate([f"attn.{i}" for i in range(heads)] or ["attn"]):
        own = x.view(9, 12, -1)[:, :, h]  # heads are the inner dimension
        a, b = (own @ t[f"{net}.attention_{g}.0.weight"].T + t[f"{net}.attention_{g}.0.bias"] for g in "ab")
        score = (a.tanh() * b.sigmoid()) @ t[f"{net}.attention_c.weight"].T + t[f"{net}.attention_c.bias"]
        pooled.append((score.softmax(0) * own).sum(0))
    expected = pooled[0]
    if heads:
        expected = torch.stack(pooled, 1).flatten() @ t["proj_multihead.weight"].T + t["proj_multihead.bias"]
    with torch.inference_mode():
        torch.testing.assert_close(system.embed_slide(features), expected, atol=1e-5, rtol=1e-4)
        weights = system.attention(features)
        torch.testing.assert_close(system.embed_slide(features.flip(0)), system.embed_slide(features))
    assert weights.shape == (9, heads or 1)
    torch.testing.assert_close(weights.sum(0), torch.ones(heads or 1))
    with pytest.raises(ValueError, match=r"features \(N, 16\)"):
        system.embed_slide(torch.zeros(3, 5))


def test_tangle_of_an_unknown_activation(tmp_path):
    card, path, _ = write_tangle("tangle", tmp_path)
    (tmp_path / "config.json").write_text('{"activation": "tan"}')
    with pytest.raises(ValueError, match="activation 'tan'"):
        models.load_system(card, path, device="cpu")


# Gene encoders


def counts(n=6, n_genes=N_GENES, seed=0):
    return sparse.random(n, n_genes, 0.3, format="csr", random_state=seed, data_rvs=lambda m: np.arange(m) % 9 + 1.0)


@pytest.mark.parametrize("name", GENE)
def test_gene_contract(written, name):
    system, _ = loaded(written, name)
    block = counts(6, len(system.genes))
    block = block.tolil()
    block[2] = 0
    block = block.tocsr()
    with torch.inference_mode():
        found = system.embed_counts(block)
        assert found.shape == (6, system.card.dim)
        assert (found[2] == 0).all()
        one = torch.cat([system.embed_counts(block[i : i + 1]) for i in range(6)])
        torch.testing.assert_close(one, found, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(system.embed_counts(block * 3), found, atol=1e-5, rtol=1e-4)  # depth has no effect
    assert found.std(0).max() > 1e-4
    assert {"gene_id", "symbol", "divisor"} <= set(system.genes)
    with pytest.raises(ValueError, match="expects counts of its"):
        system.embed_counts(block[:, :-1])


def reference_encoder(tensors, prefix, eps):
    layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True, layer_norm_eps=eps)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    own = {k.removeprefix(prefix).replace("Wqkv.", "in_proj_"): v for k, v in tensors.items() if k.startswith(prefix)}
    encoder.load_state_dict(own)
    return encoder


def test_nicheformer_tokens_match_its_paper(written):
    system, (tensors, genes) = loaded(written, "nicheformer")
    block = counts()
    expected = []
    encoder = reference_encoder(tensors, "encoder.", 1e-12)
    for row in block.toarray():
        value = row / row.sum() * 1e4 / genes["divisor"].to_numpy()
        order = np.argsort(-value, kind="stable")[: int((row > 0).sum())][:37]
        ids = torch.ones(1, 40, dtype=torch.long)
        ids[0, :3] = torch.tensor([5, 9, 4])  # human, the token that Visium is given, spatial
        ids[0, 3 : 3 + len(order)] = torch.from_numpy(order) + 30
        x = tensors["embeddings.weight"][ids] + tensors["positional_embedding.weight"]
        with torch.no_grad():
            expected.append(encoder(x, src_key_padding_mask=ids == 1)[0, 3:].mean(0))
    with torch.inference_mode():
        torch.testing.assert_close(system.embed_counts(block), torch.stack(expected), atol=1e-5, rtol=1e-4)
    assert len(CONTEXT) == 3


def test_ranked_ties_go_to_the_lower_row():
    block = sparse.csr_matrix([[2.0, 0, 4, 2], [0, 0, 0, 0]])
    assert ranked_by_ratio(block, np.array([1.0, 1, 2, 1]), 5).tolist() == [[30, 32, 33, 0, 0], [0] * 5]


def test_scgpt_tokens_match_its_paper(written):
    system, (tensors, tokens, means) = loaded(written, "scgpt-spatial")
    assert len(system.genes) == len(GENES) - 3  # those without a mean are left out
    block = counts(4, len(system.genes))
    encoder = reference_encoder(tensors, "transformer_encoder.", 1e-5)
    t, expected = tensors, []
    for row in block.toarray():
        (here,) = np.nonzero(row)
        ids = torch.tensor([[tokens["<cls>"], *here]])
        bins = _scgpt.quantile_bins(row[here] / means["mean"].to_numpy()[here])
        values = torch.tensor([[-2.0, *bins]], dtype=torch.float32)
        gene = F.layer_norm(
            t["encoder.embedding.weight"][ids], (16,), t["encoder.enc_norm.weight"], t["encoder.enc_norm.bias"]
        )
        value = F.relu(values[..., None] @ t["value_encoder.linear1.weight"].T + t["value_encoder.linear1.bias"])
        value = value @ t["value_encoder.linear2.weight"].T + t["value_encoder.linear2.bias"]
        value = F.layer_norm(value, (16,), t["value_encoder.norm.weight"], t["value_encoder.norm.bias"])
        with torch.no_grad():
            expected.append(encoder(gene + value)[0, 0])
    with torch.inference_mode():
        found = system.embed_counts(block, level="feature")
        torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(system.embed_counts(block), F.normalize(found, dim=1))


def test_bins_of_a_spot():
    rng = np.random.default_rng(0)
    distinct = _scgpt.quantile_bins(rng.permutation(500) + 1.0)
    assert (distinct.min(), distinct.max()) == (1, 50)
    assert _scgpt.quantile_bins(np.full(9, 2.0)).tolist() == [25] * 9  # every edge is the same: the middle
    assert _scgpt.quantile_bins(np.array([])).tolist() == []


def test_scgpt_keeps_the_same_genes_of_rich_spots(written, monkeypatch):
    system, _ = loaded(written, "scgpt-spatial")
    monkeypatch.setattr(_scgpt, "_MAX_LENGTH", 21)
    rich = counts(3, len(system.genes))
    rich.data[:] = 1
    ids, _ = system._tokenize(rich)
    assert ids.shape == (3, 21)
    again, _ = system._tokenize(rich[1:])
    np.testing.assert_array_equal(again, ids[1:])


@pytest.mark.parametrize(("name", "lost"), [("scgpt-spatial", "vocab.json"), ("nicheformer", "genes.tsv")])
def test_a_gene_system_without_its_vocabulary(tmp_path, name, lost):
    card, path, _ = WRITERS[name](name, tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(FileNotFoundError, match=lost):
        models.load_system(card, path, device="cpu")


# Bad weights


@pytest.mark.parametrize("name", list(WRITERS))
@pytest.mark.parametrize("damage", ["truncated", "missing", "extra", "shape", "other"])
def test_wrong_files_are_refused(written, tmp_path, name, damage):
    """A file that is cut short, that lacks a tensor, has one too many or of another shape, or is of something else."""
    import shutil

    card, path, _ = written(name)
    home = path if path.is_dir() else path.parent
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    file = tmp_path / ("best_model.pt" if path.is_dir() else path.name)
    spoil(file, damage)
    with pytest.raises(ValueError, match=r"damaged|do not fit|not the file|is no |is not a|do not belong"):
        models.load_system(card, tmp_path if path.is_dir() else file, device="cpu")


def spoil(file, damage):
    from safetensors.torch import load_file, save_file

    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-200] if file.suffix != ".safetensors" else file.read_bytes()[:200])
        return
    plain = file.suffix == ".safetensors"
    whole = load_file(file) if plain else torch.load(file, weights_only=False)
    tensors = whole.get("state_dict", whole)
    used = [k for k in tensors if ("norm" in k or "pre_attn" in k or "post_layernorm" in k or "ln_post" in k)
            and "text" not in k and "encoder_layer." not in k]  # fmt: skip
    key = used[-1]
    if damage == "missing":
        del tensors[key]
    elif damage == "extra":
        tensors["surprise.weight"] = torch.zeros(3)
    elif damage == "shape":
        tensors[key] = torch.zeros(*tensors[key].shape, 2)
    else:
        whole = {"head.weight": torch.zeros(2, 2)}
    save_file(whole, file) if plain else torch.save(whole, file)


def test_nothing_is_executed(tmp_path):
    import pickle

    (tmp_path / "x.bin").write_bytes(pickle.dumps({"a": print}, protocol=2))
    with pytest.raises(ValueError, match="never unpickles"):
        models.load_system("uni", tmp_path / "x.bin", device="cpu")


# Weights that cannot be had


@pytest.mark.parametrize(
    ("name", "message"), [("uni", "No weights of UNI"), ("nicheformer", "No weights of Nicheformer")]
)
def test_missing_path(tmp_path, name, message):
    with pytest.raises(FileNotFoundError, match=message):
        models.load(f"{name}:{tmp_path / 'nowhere.bin'}")


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="contains none of"):
        models.load(f"uni:{tmp_path}")


@pytest.mark.parametrize("name", ["tangle", "scgpt-spatial", "nicheformer"])
def test_not_on_the_hub(name):
    with pytest.raises(FileNotFoundError, match=f"not on the hub.*{name}:/path"):
        models.load(name)


def hub_error(kind, status=403):
    from types import SimpleNamespace

    from huggingface_hub import errors

    if kind == "LocalEntryNotFoundError":
        return errors.LocalEntryNotFoundError("nothing cached")
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return getattr(errors, kind)("no", response=response)


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (("GatedRepoError",), PermissionError, r"Request access at .*MahmoodLab/UNI .*hf auth login.*model='uni:/path"),
        (("RepositoryNotFoundError", 401), PermissionError, "HF_TOKEN"),
        (("HfHubHTTPError", 401), PermissionError, "hf auth login"),
        (("HfHubHTTPError", 500), ConnectionError, "Try again"),
        (("LocalEntryNotFoundError",), ConnectionError, r"cannot be reached.*model='uni:/path"),
        (("RemoteEntryNotFoundError", 404), FileNotFoundError, "contains none of"),
    ],
)
def test_errors_of_the_hub(monkeypatch, error, expected, message):
    import huggingface_hub

    def refuse(*_, **__):
        raise hub_error(*error)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(expected, match=message):
        models.load("uni", device="cpu")


@pytest.fixture
def hub(written, monkeypatch, tmp_path):
    """A hub that has weights of Virchow2 under the second of the possible names, and their card pinned."""
    import shutil
    from dataclasses import replace

    import huggingface_hub

    from stampy._files import sha256_of

    card, path, _ = written("virchow2")
    asked = []

    def give(repository, name, revision):
        assert repository == "paige-ai/Virchow2"
        asked.append((name, revision))
        if name != "pytorch_model.bin":
            raise hub_error("RemoteEntryNotFoundError", 404)
        commit = "a" * 40 if revision == "main" else revision
        (tmp_path / commit).mkdir(exist_ok=True)
        return shutil.copy(path, tmp_path / commit / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", give)
    pinned = replace(card, revision="b" * 40, sha256={"pytorch_model.bin": sha256_of(path)})
    return pinned, asked


def test_from_the_hub(hub):
    """The file of the card at the commit of the card; both are kept for the record."""
    card, asked = hub
    system = models.load_system(card, device="cpu")
    assert system.source == f"hf-hub:paige-ai/Virchow2@{'b' * 40}"
    assert asked == [("pytorch_model.bin", "b" * 40)]


def test_another_file_on_the_hub_is_refused_and_removed(hub, tmp_path):
    from dataclasses import replace

    card, _ = hub
    card = replace(card, sha256={"pytorch_model.bin": "0" * 64})
    with pytest.raises(ValueError, match=r"expected 0{64}: it is not the file .* was removed"):
        models.load_system(card, device="cpu")
    assert not list(tmp_path.glob("*/pytorch_model.bin"))


@pytest.mark.parametrize("known", [{}, {"revision": "c" * 40}])
def test_unpinned_weights_are_downloaded_only_on_request(hub, known):
    from dataclasses import replace

    card, asked = hub
    card = replace(card, **({"revision": None, "sha256": {}} | known))
    with pytest.raises(ValueError, match=r"not downloaded unasked.*model='virchow2@"):
        models.load_system(card, device="cpu")
    assert not asked
    with pytest.warns(UserWarning, match="was not verified"):
        path, source = _hub.find_weights(card, None, "main")
    assert source.endswith("a" * 40)
    assert path.is_file()


def test_a_revision_of_the_users_own(monkeypatch):
    asked = []

    def fetched(card, revision):
        asked.append((card.name, revision))
        raise ConnectionError("no hub here")

    monkeypatch.setattr(_hub, "_fetched", fetched)
    for name in ("uni@main", "stamp@0123abc"):
        with pytest.raises(ConnectionError):
            models.load(name, device="cpu")
    with pytest.raises(ValueError, match="not downloaded unasked"):
        models.load("stamp", device="cpu")
    assert asked == [("uni", "main"), ("stamp-f", "0123abc")]


def test_pins_are_whole():
    for name in models.systems().index:
        card = models.card(name)
        assert card.revision is None or (len(card.revision) == 40 and set(card.revision) <= set("0123456789abcdef"))
        assert set(card.sha256) <= set(card.files)
        assert all(len(value) == 64 and set(value) <= set("0123456789abcdef") for value in card.sha256.values())


@pytest.mark.parametrize(("name", "module"), list(NEEDS.items()))
def test_a_library_that_is_missing(monkeypatch, tmp_path, name, module):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=rf"{module}.*pip install"):
        _hub.require(module, models.card(name))
    with pytest.raises(ImportError, match="not installed"):
        models.load(f"{name}:{tmp_path}")


def test_two_paths():
    with pytest.raises(ValueError, match="Two paths"):
        models.load_system("uni:a.bin", "b.bin")


@pytest.mark.parametrize(("name", "message"), [("pca", "is fitted to a section"), ("stnet", "trained by you")])
def test_systems_without_weights(name, message):
    with pytest.raises(ValueError, match=message):
        models.load(name)


# One door: tl.embed


@pytest.fixture
def catalogue(monkeypatch, written):
    """The catalogue with small variants, and the argument `model` for a name."""
    from stampy.models._systems import catalogue as _catalogue

    def model(name):
        if name in WRITERS:
            card, path, _ = written(name)
            monkeypatch.setitem(_catalogue.CARDS, name, card)
            return f"{name}:{path}"
        return name

    return model


@pytest.mark.parametrize("name", [*IMAGE, *GENE, "pca", "pca-smoothed"])
def test_embed(toy, catalogue, name):
    toy, model = toy[:60].copy(), catalogue(name)
    card = models.card(name)  # the small variant's
    scale = {} if card.modality == "gene" else {"um_per_px": 1.6}
    adata = tl.embed(toy, model, **scale, copy=True, **QUIET)
    values, record = adata.obsm["X_stamp"], adata.uns["stamp"]["X_stamp"]
    assert values.shape == (toy.n_obs, card.dim)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    assert record["model"] == name
    assert record["modality"] == card.modality
    assert ("X_stamp_image" in adata.obsm) == (card.modality in ("image", "fused"))
    if name in WRITERS:
        assert record["weights"]
    if card.modality == "image":
        assert record["tiles"]["size_px"] == card.size_px
        assert record["tiles"]["tile_um"] == card.tile_um
    some = tl.embed(toy[:7].copy(), model, **scale, batch_size=3, copy=True, **QUIET)
    if not name.startswith("pca"):
        np.testing.assert_allclose(some.obsm["X_stamp"], values[:7], atol=1e-4)


@pytest.mark.parametrize("name", ["virchow2", "nicheformer"])
def test_embed_with_a_loaded_system(toy, written, name):
    system, _ = loaded(written, name)
    adata = tl.embed(toy, system, key_added="X_a", level="feature", copy=True, **QUIET)
    assert adata.obsm["X_a"].shape == (toy.n_obs, system.card.feature_dim)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("pixels", {"modality": "gene"}, "embeds only modality 'image'"),
        ("pca", {"modality": "image"}, "embeds only modality 'gene'"),
        ("pca", {"image_key": "hires"}, "uses no image"),
        ("stamp-g", {"modality": "fused"}, "embeds only modality 'gene'"),
        ("tangle", {}, "embeds slides, not spots"),
        ("egn", {}, "predicts expression"),
    ],
)
def test_embed_raises_before_any_computation(toy, name, arguments, message):
    with pytest.raises(ValueError, match=message):
        tl.embed(toy, name, **arguments, **QUIET)


def test_embed_raises_for_other_objects(toy):
    with pytest.raises(TypeError, match="a name, a path or a loaded model"):
        tl.embed(toy, nn.Linear(2, 2), **QUIET)


def test_duplicated_genes_are_summed(toy, written):
    import anndata as ad

    system, _ = loaded(written, "nicheformer")
    whole = tl.embed(toy, system, copy=True, **QUIET)
    var = pd.DataFrame({"gene_ids": toy.var["gene_ids"].tolist() * 2}, index=[f"g{i}" for i in range(2 * toy.n_vars)])
    doubled = ad.AnnData(sparse.hstack([toy.X, toy.X], format="csr"), obs=toy.obs[[]].copy(), var=var)
    twice = tl.embed(doubled, system, copy=True, **QUIET)
    np.testing.assert_allclose(twice.obsm["X_stamp"], whole.obsm["X_stamp"], atol=1e-5)


def test_embed_the_published_stamp_from_a_file(toy, tmp_path):
    """stamp-g, stamp-v and stamp-f are one checkpoint; its vocabulary is `genes.tsv` in the same folder."""
    from stampy.models._published import RENAMED, RENAMED_GENE

    gene = models.GeneConfig(n_genes=len(GENES), width=32, depth=1, feedforward=16, max_tokens=20, pooling="positions")
    kwargs = {"init_values": 1e-5, "dynamic_img_size": True, "embed_dim": 32, "depth": 1, "num_heads": 16}
    stamp = models.Stamp(models.StampConfig(gene=gene, image=models.ImageConfig(backbone_kwargs=kwargs), embedding=8))
    names = {v: k for k, v in RENAMED.items()}
    back = {v: k for k, v in RENAMED_GENE.items()}
    tensors = {}
    for key, value in randomise(stamp).items():
        head = next((h for h in names if key.startswith(h)), "")
        rest = key.removeprefix(head)
        if head == "gene.":
            rest = next((b + rest.removeprefix(a) for a, b in back.items() if rest.startswith(a)), rest)
        tensors[names.get(head, "") + rest] = value
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    pd.DataFrame({"gene_id": GENES, "symbol": "", "divisor": 1.0}).to_csv(tmp_path / "genes.tsv", sep="\t", index=False)
    for name, keys in (("stamp-g", ["_gene"]), ("stamp-v", ["_image"]), ("stamp-f", ["_gene", "_image"])):
        adata = tl.embed(toy, f"{name}:{tmp_path}", copy=True, **QUIET)
        assert [k for k in adata.obsm if k.startswith("X_stamp_")] == [f"X_stamp{k}" for k in keys]
        assert adata.obsm["X_stamp"].shape == (toy.n_obs, 8 * len(keys))
    assert isinstance(models.load(f"stamp:{tmp_path}", device="cpu"), models.Stamp)


# The real shapes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uni", "conch", "plip", "omiclip"])
def test_real_shapes_from_disk(tmp_path, name):
    """Random weights of the real sizes, written and read in the system's own format, one tile embedded."""
    import open_clip
    import timm
    from transformers import CLIPConfig, CLIPModel

    card = models.card(name)
    path = tmp_path / card.files[-1]
    if name == "uni":
        vit = timm.create_model(
            "vit_large_patch16_224", img_size=224, num_classes=0, init_values=1e-5, dynamic_img_size=True
        )
        torch.save(vit.state_dict(), path)
    elif name == "conch":
        torch.save(draw(conch_shapes(768, 12, 512, 768, n_places=28 * 28)), path)
    elif name == "plip":
        torch.save(CLIPModel(CLIPConfig()).state_dict(), path)
    else:
        config = open_clip.get_model_config("coca_ViT-L-14")
        config.pop("custom_text")
        torch.save({"epoch": 1, "state_dict": open_clip.CoCa(**config).state_dict()}, path)
    system = models.load(f"{name}:{path}", device="cpu")
    with torch.inference_mode():
        assert system.embed_images(tiles(1, 224)).shape == (1, card.dim)
