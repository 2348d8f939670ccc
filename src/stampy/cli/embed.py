"""`stampy embed` and `stampy slide`."""

from __future__ import annotations

from typing import Any

from stampy.cli.options import Commands, command, common_options, input_options, model_option, show_progress

__all__ = ["EXAMPLES", "add_commands"]

EXAMPLES = {
    "embed": """
        stampy embed section.h5ad embedded.h5ad
        stampy embed section.h5ad embedded.h5ad --image slide.tif --um-per-px 0.25
        stampy embed spaceranger/outs embedded.h5ad --modality gene --layer counts
        stampy embed visium.zarr visium.zarr --overwrite  only the table is written
        stampy embed hd/outs hd.h5ad --bin-um 16 --resume hd-parts
        """,
    "slide": """
        stampy slide slide.svs slide.zarr
        stampy slide slide.tif slide.zarr --um-per-px 0.25 --level feature
        """,
}


def add_commands(commands: Commands) -> None:
    """Add both to the parser."""
    _embed_options(commands)
    _slide_options(commands)


def _embed_options(commands: Commands) -> None:
    add = command(commands, "embed", _embed, "Embed every spot of a section.").add_argument
    add("source", metavar="IN", help=".h5ad, .zarr (AnnData, SpatialData), or a folder: Space Ranger, Xenium, ST, ...")
    add("target", metavar="OUT", help=".h5ad or .zarr; it gets all that IN has, and the embedding")
    model_option(add)
    input_options(add)
    add("--key-added", default="X_stamp", metavar="KEY", help="key of obsm to write (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace OUT; also needed where OUT is IN")
    add("--bin-um", type=float, metavar="UM", help="Visium HD: which bins (default: 8); cells: summed up in such bins")
    add("--table-key", default="table", metavar="NAME", help="table of a SpatialData (default: %(default)s)")
    add("--resume", metavar="FOLDER", help="keep what is done there, and go on from it after an interruption")
    common_options(add)


def _slide_options(commands: Commands) -> None:
    about = "Embed the tissue of a whole slide, tile by tile; a run that was cut off goes on."
    add = command(commands, "slide", _slide, about).add_argument
    add("source", metavar="IN", help="pyramidal TIFF, OME-TIFF, or .svs, .ndpi, .mrxs, ... (OpenSlide)")
    add("target", metavar="OUT", help=".zarr, an AnnData with a row per tile")
    model_option(add)
    add("--level", choices=("embedding", "feature"), default="embedding", help="default: %(default)s")
    add("--um-per-px", type=float, metavar="UM", help="size of a pixel of the full resolution (default: the file's)")
    add("--tile-um", type=float, metavar="UM", help="from tile to tile (default: what the model sees)")
    add("--min-tissue", type=float, metavar="PART", help="least part of a tile that is tissue (default: 0.5)")
    add("--batch-size", type=int, metavar="N", help="tiles per batch (default: what suits the device)")
    add("--n-workers", type=int, default=1, metavar="N", help="threads that read tiles (default: %(default)s)")
    common_options(add)


def _embed(
    *, source: str, target: str, overwrite: bool, quiet: bool, bin_um: float | None, table_key: str, **options: Any
) -> None:
    from stampy import _checks
    from stampy._io import read as _formats
    from stampy.models._names import check_name
    from stampy.tl._arguments import Request

    place = _checks.existing(source, what="section")
    check_name(options["model"])
    kind = _formats.format_of(place)
    extra = {"image": options.pop("image")} if kind in ("Xenium", "ST") else {}
    if bin_um is not None and kind != "Space Ranger":
        extra["um_per_px"] = options["um_per_px"]
        if options["modality"] == "gene":  # it is the scale of the bins then
            options["um_per_px"] = None
    asked = {name: value for name, value in options.items() if name not in ("model", "device")}
    Request(**asked, table_key=table_key)  # conflicts are told before anything is read
    path = _formats.checked_target(target, overwrite=overwrite)
    # of like formats only the results are written, into a copy; the counts stay on disk
    alike = bin_um is None and {"h5ad": ".h5ad", "zarr": ".zarr", "SpatialData": ".zarr"}.get(kind) == path.suffix
    data = _formats.read(place, bin_um=bin_um, backed=alike, **extra)

    from stampy import _utils, tl

    tl.embed(data, show_progress_bar=show_progress(quiet), table_key=table_key, **options)
    table, key = _utils.table_of(data, table_key), options["key_added"]
    keys = _formats.written_keys(table, key)
    if not (alike and _formats.append(table, keys, place, path, table_key=table_key)):
        _formats.write(data, path, table_key=table_key)
    if not quiet:
        record = table.uns["stamp"][key]
        genes = record.get("genes")
        overlap = f", {genes['n_matched']} of {genes['n_vars']} genes matched" if genes else ""
        print(f"{table.n_obs} spots, {record['modality']}, by {record['model']}{overlap}")
        print(f"Written: {path}, obsm[{key!r}] {table.obsm[key].shape}")


def _slide(*, source: str, target: str, quiet: bool, **options: Any) -> None:
    from stampy import _checks
    from stampy.models._names import check_name

    _checks.existing(source, what="image file")
    check_name(options["model"])

    from stampy import tl

    path = tl.embed_slide(source, target, show_progress_bar=show_progress(quiet), **options)
    if not quiet:
        import anndata

        adata = anndata.read_zarr(path)
        record = adata.uns["stamp"]["slide_tiles"]
        print(f"{adata.n_obs} tiles of {record['tile_um']:.4g} µm, by {options['model']}")
        print(f"Written: {path}, obsm['X_stamp'] {adata.obsm['X_stamp'].shape}")
