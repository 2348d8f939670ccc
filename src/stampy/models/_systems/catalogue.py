"""All cards, and all names accepted by `load`. Facts are those of the systems' publications and public loaders.

Access and licences may change; the page at the card's address is authoritative. Unknown facts are marked as unknown.
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stampy import _checks
from stampy._files import recover
from stampy.models._systems.cards import BENCHMARKS, Card, image_input

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CARDS", "card", "check_name", "packaged", "split_name", "split_revision", "systems", "unknown_model"]

CLIP: dict[str, Any] = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
_BIN = ("model.safetensors", "pytorch_model.bin")
_VIT_L = {"backbone": "vit_large_patch16_224", "init_values": 1e-5, "dynamic_img_size": True}
# Commits on the hub and SHA-256 of their files, not checked against the hub itself: each value is pinned by two or more
# independent public repositories that agree. Where there were no two (STAMP, mSTAR, OmiCLIP; the hash of H-optimus-0),
# nothing is pinned, and downloads require an explicit revision.
_PINNED: dict[str, dict[str, Any]] = {
    "uni": {
        "revision": "b55a5ec6cade1a39edfe6534189a9b8ca7a022f0",
        "sha256": {"pytorch_model.bin": "56ef09b44a25dc5c7eedc55551b3d47bcd17659a7a33837cf9abc9ec4e2ffb40"},
    },
    "uni2-h": {
        "revision": "d517a8dd47902dd7c308b3c36f63bce47e7b9a43",
        "sha256": {"pytorch_model.bin": "6e077eda234bebc595868d918d3458d9dd32a050199b0ff04443b2f46a0a3b1e"},
    },
    "virchow2": {
        "revision": "3158645804b69e3f3bc4439d4116edddf0840a72",
        "sha256": {
            "model.safetensors": "8d6cea947eb2418c3b0dff48cfb9b238e47744ab0dfca21b2b0637b140769b4b",
            "pytorch_model.bin": "14244fbaa5409452f6a6ae01b5d2dc452f2399e2210e696d0f7ef04bb4838666",
        },
    },
    "conch": {
        "revision": "f9ca9f877171a28ade80228fb195ac5d79003357",
        "sha256": {"pytorch_model.bin": "40a9644b9ba0e83a74576e0a5e5f7313599fa9c9cdaf3c20f8a3e271b0e9ae7c"},
    },
    "plip": {
        "revision": "67ade53ddd32195868f422585f72698ef5d15094",
        "sha256": {"pytorch_model.bin": "98a7f8d2a1f4a8fc8f6dedb3a16ff7efbe02a7ef67c93904c80bca9767c69630"},
    },
    "h-optimus-0": {"revision": "b145cc1e6c6b30d3251aa8b1f844e6974188a743"},
}
_PRIVATE = "not public; no data set of the tables is named"
_STAMP: dict[str, Any] = {
    "title": "STAMP",
    "loader": "stampy",
    "licence": "that of its authors, not stated in the repository",
    "gate": "unclear",
    "repository": "minghaofdu/STAMP",
    "files": ("pytorch_model.bin",),
    "citation": "arXiv:2602.13944",
    "trained_on": "genes: SpaVis-6M (1,982 public Visium sections); images: 697 K pairs of HEST. Which sections of the "
    "tables are among them was not verified",
    "note": "Genes need the vocabulary, `genes.tsv`, in the folder of the file",
}
_NOTHING = dict.fromkeys(BENCHMARKS, False)

_ALL = (
    Card(
        name="stamp-g", modality="gene", dim=512, feature_dim=512, parameters=36_680_704, **_STAMP,
    ),
    Card(
        name="stamp-v", modality="image", dim=512, feature_dim=1024, parameters=303_876_608, **image_input(), **_STAMP,
    ),
    Card(
        name="stamp-f", modality="fused", dim=1024, feature_dim=1536, parameters=340_557_312, **image_input(), **_STAMP,
    ),
    Card(
        name="uni", title="UNI", modality="image", loader="timm", licence="CC-BY-NC-ND-4.0", gate="gated", dim=1024,
        feature_dim=1024, repository="MahmoodLab/UNI", files=_BIN, parameters=303_350_784,
        citation="doi:10.1038/s41591-024-02857-3", trained_on="Mass-100K: slides of two hospitals and of GTEx",
        seen={"TCGA-LUAD": False}, architecture=_VIT_L, **image_input(),
    ),
    Card(
        name="uni2-h", title="UNI2-h", modality="image", loader="timm", licence="CC-BY-NC-ND-4.0", gate="gated",
        dim=1536, feature_dim=1536, repository="MahmoodLab/UNI2-h", files=_BIN, parameters=681_394_176,
        citation="doi:10.1038/s41591-024-02857-3", trained_on=f"more than 350,000 H&E and IHC slides, {_PRIVATE}",
        architecture={
            "backbone": "vit_giant_patch14_224", "img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24,
            "init_values": 1e-5, "embed_dim": 1536, "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8,
            "mlp_layer": "SwiGLUPacked", "act_layer": "SiLU", "dynamic_img_size": True,
        }, **image_input(),
    ),
    Card(
        name="h-optimus-0", title="H-optimus-0", modality="image", loader="timm", licence="Apache-2.0", gate="unclear",
        dim=1536, feature_dim=1536, repository="bioptimus/H-optimus-0", files=_BIN, parameters=1_134_774_272,
        citation="github.com/bioptimus/releases", trained_on=f"more than 500,000 slides, {_PRIVATE}",
        note="Public loaders disagree on whether access must be requested",
        architecture={"backbone": "vit_giant_patch14_reg4_dinov2", "img_size": 224, "init_values": 1e-5,
                      "dynamic_img_size": False},
        **image_input(mean=(0.707223, 0.578729, 0.703617), std=(0.211883, 0.230117, 0.177517)),
    ),
    Card(
        name="virchow2", title="Virchow2", modality="image", loader="timm", licence="CC-BY-NC-ND-4.0", gate="gated",
        dim=2560, feature_dim=2560, repository="paige-ai/Virchow2", files=_BIN, parameters=631_239_424,
        citation="arXiv:2408.00738", trained_on=f"3.1 million slides, {_PRIVATE}",
        note="Class token and mean of the patch tokens, concatenated; the four register tokens are not used",
        architecture={
            "backbone": "vit_huge_patch14_224", "img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.3375,
            "reg_tokens": 4, "mlp_layer": "SwiGLUPacked", "act_layer": "SiLU", "dynamic_img_size": True,
            "pool": "class+mean",
        }, **image_input(),
    ),
    Card(
        name="mstar", title="mSTAR", modality="image", loader="timm", licence="CC-BY-NC-ND-4.0", gate="gated", dim=1024,
        feature_dim=1024, repository="Wangyh/mSTAR", files=("mSTAR.pth",), parameters=303_350_784,
        citation="doi:10.1038/s41467-025-66220-x", trained_on="TCGA: slides, reports and bulk RNA",
        seen={"TCGA-LUAD": True}, architecture=_VIT_L, **image_input(),
    ),
    Card(
        name="conch", title="CONCH", modality="image", loader="timm", licence="CC-BY-NC-ND-4.0", gate="gated", dim=512,
        feature_dim=512, repository="MahmoodLab/conch", files=("pytorch_model.bin",), parameters=87_377_664,
        citation="doi:10.1038/s41591-024-02856-4",
        trained_on="1.17 million captioned images of articles and teaching material", seen={"TCGA-LUAD": False},
        note="The published default is 448 px; 224 px is what the paper of STAMP compared. Probes by its authors use "
        "level='feature'",
        architecture={"width": 768, "depth": 12, "heads": 12, "embedding": 512, "caption": 768}, **image_input(**CLIP),
    ),
    Card(
        name="plip", title="PLIP", modality="image", loader="transformers",
        licence="not stated; listed as non-commercial",
        gate="open", dim=512, feature_dim=768, repository="vinid/plip", files=_BIN, parameters=87_849_216,
        citation="doi:10.1038/s41591-023-02504-3", trained_on="OpenPath: 208,414 images with texts of public forums",
        **image_input(**CLIP),
    ),
    Card(
        name="omiclip", title="OmiCLIP", modality="image", loader="open_clip",
        licence="not stated; listed as BSD-3-Clause", gate="gated", dim=768, feature_dim=768,
        repository="WangGuangyuLab/Loki", files=("checkpoint.pt",), parameters=306_724_864,
        citation="doi:10.1038/s41592-025-02707-1",
        trained_on="ST-bank: 2.2 million pairs of 1,007 public samples; which of the tables' was not verified",
        note="Its training tiles were about as wide as a spot", architecture={"name": "coca_ViT-L-14"},
        **image_input(**CLIP),
    ),
    Card(
        name="tangle", title="TANGLE", modality="slide", loader="stampy", licence="CC-BY-NC-ND-4.0", gate="open",
        dim=1024, feature_dim=1024, address="github.com/mahmoodlab/TANGLE (a shared drive)",
        citation="arXiv:2405.11618", trained_on="TCGA-BRCA, the pan-cancer variant all of TCGA: slides and bulk RNA",
        seen={"TCGA-LUAD": True}, note="From bags of UNI features; both variants (one head, several heads) are read",
    ),
    Card(
        name="scgpt-spatial", title="scGPT-spatial", modality="gene", loader="stampy", licence="MIT (code)",
        gate="open", dim=512, feature_dim=512, address="doi:10.6084/m9.figshare.28356068 (a folder)",
        files=("best_model.pt",), citation="doi:10.1101/2025.02.05.636714",
        trained_on="SpatialHuman30M: public Visium, Visium HD, Xenium, MERFISH; which of the tables' was not verified",
        note="Sizes are read from args.json; 512 is scGPT's",
    ),
    Card(
        name="nicheformer", title="Nicheformer", modality="gene", loader="stampy", licence="BSD-3-Clause (code)",
        gate="open", dim=512, feature_dim=512, address="github.com/theislab/nicheformer (a checkpoint)",
        files=("nicheformer.ckpt", "nicheformer.pt"), citation="doi:10.1101/2024.04.15.589472",
        parameters=36_418_048, trained_on="SpatialCorpus-110M: dissociated cells, MERFISH, CosMx, Xenium",
        note="It has no token for Visium: spots get the token of Xenium. `genes.tsv` must be in the same folder",
    ),
    Card(
        name="stampy-mini", title="stampy-mini", modality="fused", loader="stampy", gate="none",
        licence="BSD-3-Clause; image stem Apache-2.0", dim=256, feature_dim=1280, parameters=3_567_792,
        citation="this package", trained_on="34 public sections, the image stem on ImageNet; see its card",
        seen={"DLPFC": False, "HBC": False, "HHK": False, "HER2+": True, "TCGA-LUAD": False},
        note="Comes with the package. DLPFC 151673 and 151674, HER2+ patient A and HBC were not used in training",
        **image_input(97, mean=(127 / 255,) * 3, std=(128 / 255,) * 3),
    ),
    Card(
        name="stnet", title="ST-Net", modality="predictor", loader="timm", licence="none: trained by you", gate="none",
        dim=None, feature_dim=1024, parameters=12_078_856, citation="doi:10.1038/s41551-020-0578-x",
        trained_on="your data; it may start from ImageNet", seen=_NOTHING, note="Counted for 5,000 genes",
        **image_input(),
    ),
    Card(
        name="egn", title="EGN", modality="predictor", loader="stampy", licence="none: trained by you", gate="none",
        dim=None, parameters=144_964_520, citation="arXiv:2210.16721", trained_on="your data", seen=_NOTHING,
        note="Counted for 5,000 genes and features of 2,048 numbers", **image_input(),
    ),
    Card(
        name="pca", title="PCA", modality="gene", loader="scanpy", licence="none", gate="none", dim=50, feature_dim=50,
        citation="", trained_on="nothing: fitted to the section(s) that it embeds", seen=_NOTHING,
        note="50 components of the 2,000 most variable genes, log-normalised",
    ),
    Card(
        name="pca-smoothed", title="Smoothed PCA", modality="gene", loader="scanpy", licence="none", gate="none",
        dim=50, feature_dim=50, citation="", trained_on="nothing: fitted to the section(s) that it embeds",
        seen=_NOTHING, note="PCA, then the mean over a spot and its six nearest of the same section",
    ),
    Card(
        name="pixels", title="Pixels", modality="image", loader="stampy", licence="none", gate="none", dim=192,
        feature_dim=192, parameters=0, citation="", trained_on="nothing", seen=_NOTHING,
        note="The tile shrunk to 8 x 8 colours", architecture={"edge": 8},
        **image_input(size_px=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    ),
)  # fmt: skip

CARDS = {card.name: replace(card, **_PINNED.get(card.name, {})) for card in _ALL}


def card(name: str) -> Card:
    """Return the card of a system.

    Parameters
    ----------
    name
        Name as in the table `systems`, optionally with a path: ``"uni:/path/to/pytorch_model.bin"``.

    Raises
    ------
    ValueError
        There is no system of that name.

    Examples
    --------
    >>> import stampy
    >>> virchow = stampy.models.card("virchow2")
    >>> virchow.dim, virchow.gate, virchow.weights_at
    (2560, 'gated', 'hf-hub:paige-ai/Virchow2')
    """
    found = split_name(name)
    if found is None:
        _checks.one_of("name", name, CARDS)
        raise KeyError(name)
    return CARDS[found[0]]


def split_revision(name: str) -> tuple[str, str | None]:
    """Split a name into the name and the revision on the hub.

    >>> split_revision("uni@main"), split_revision("uni:a@b.bin")
    (('uni', 'main'), ('uni:a@b.bin', None))
    """
    system, at, revision = name.partition("@")
    return (system, revision or None) if at and system in CARDS else (name, None)


def split_name(name: str) -> tuple[str, str | None] | None:
    """Split a name into the name of a system and the path of its weights; None if it is not a system.

    >>> split_name("uni:weights/pytorch_model.bin"), split_name("uni"), split_name("hf-hub:org/name")
    (('uni', 'weights/pytorch_model.bin'), ('uni', None), None)
    """
    system, _, path = split_revision(name)[0].partition(":")
    return (system, path or None) if system in CARDS else None


def systems(modality: str | None = None) -> pd.DataFrame:
    """List all systems that stampy can run, as a table.

    Parameters
    ----------
    modality
        Only systems of this modality.

    Returns
    -------
    One row per system, with its name as index: title, modality, loader, licence, gate, dim, feature_dim, size_px,
    tile_um, mean, std, parameters, weights, citation, trained_on, and for each data set of the paper's tables whether
    the system was trained on it: ``"yes"``, ``"no"`` or ``"unknown"``.

    Examples
    --------
    >>> import stampy
    >>> table = stampy.models.systems()
    >>> table.loc["uni", ["licence", "gate"]].tolist()
    ['CC-BY-NC-ND-4.0', 'gated']
    >>> table.loc["tangle", "TCGA-LUAD"]
    'yes'
    """
    import pandas as pd

    if modality is not None:
        _checks.one_of("modality", modality, sorted({c.modality for c in CARDS.values()}))
    columns = ("title", "modality", "loader", "licence", "gate", "dim", "feature_dim", "size_px", "tile_um", "mean",
               "std", "parameters", "weights_at", "citation", "trained_on")  # fmt: skip
    answers = {True: "yes", False: "no", None: "unknown"}
    rows = {
        c.name: {name.removesuffix("_at"): getattr(c, name) for name in columns}
        | {data: answers[c.has_seen(data)] for data in BENCHMARKS}
        for c in CARDS.values()
        if modality in (None, c.modality)
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")
    whole = ["dim", "feature_dim", "size_px", "parameters"]
    return table.astype(dict.fromkeys(whole, "Int64"))


def packaged() -> list[str]:
    """Names of the models that come with the package.

    Examples
    --------
    >>> "stampy-mini" in packaged()
    True
    """
    folder = files("stampy") / "models" / "weights"
    return sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []


def check_name(name: str) -> None:
    """Raise ValueError or FileNotFoundError for a name unknown to `stampy.models.load`.

    >>> check_name("stampy-mini")
    """
    if name == "stamp" or name.startswith(("stamp:", "stamp@", "hf-hub:")) or name in packaged():
        return
    recover(Path(name).expanduser())
    if split_name(name) is None and not Path(name).expanduser().is_dir():
        raise unknown_model(name)


def unknown_model(name: str) -> Exception:
    """Return the error for an unknown name, with similar names."""
    known = [*dict.fromkeys((*packaged(), "stamp", *CARDS))]
    if "/" in name or name.startswith((".", "~")):
        return FileNotFoundError(f"No folder of weights at {name!r}. Packaged models: {known}.")
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.3)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return ValueError(
        f"Unknown model {name!r}.{hint} Known: {known}, a folder of weights, or 'hf-hub:org/name@revision'."
    )
