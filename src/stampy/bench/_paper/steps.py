"""How to get what is missing, in the words of a recipe."""

from __future__ import annotations

__all__ = ["COUNTS", "IMAGES", "LABELS", "R_STEPS"]

R_STEPS = """in R, once: library(spatialLIBD); spe <- fetch_data("spe") (or load the file that you have); \
colData(spe) <- cbind(colData(spe), spatialCoords(spe)); \
zellkonverter::writeH5AD(spe, "dlpfc.h5ad", X_name = "counts")"""

COUNTS = {
    "dlpfc": (
        "Any of: (1) https://spatial-dlpfc.s3.us-east-2.amazonaws.com/h5/{name}_filtered_feature_bc_matrix.h5, with "
        "tissue_positions_list.txt and scalefactors_json.json of github.com/LieberInstitute/HumanPilot, 10X/{name}/; "
        f"(2) {R_STEPS}; (3) an .h5ad or zarr of the section whose name has {{name}} in it, or one of all sections "
        "with a column sample_id or sample_name; (4) no folder at all: `stampy bench run dlpfc --allow-unverified` "
        "downloads."
    ),
    "hbc": (
        "10x Genomics, 'Human Breast Cancer (Block A Section 1)', Space Ranger 1.1.0: "
        "V1_Breast_Cancer_Block_A_Section_1_filtered_feature_bc_matrix.h5 and its spatial/ (unpacked) side by side."
    ),
    "her2": (
        "git clone https://github.com/almaan/her2st: data/ST-cnts/{name}.tsv.gz and data/ST-spotfiles/"
        "{name}_selection.tsv. An .h5ad with {name} in its file name also works."
    ),
    "psc": (
        "Which accession the paper used is not known. Livers with primary sclerosing cholangitis: GEO GSE243977. Put "
        "the Space Ranger folder, or an .h5ad, of each section below the folder."
    ),
    "hhk": (
        "Which accession the paper used is not known. Healthy kidneys by Visium: Lake et al. 2023, "
        "doi:10.1038/s41586-023-05769-3. Put the Space Ranger folder, or an .h5ad, of each section below the folder."
    ),
    "tcga-luad": (
        "The table and the slides of the GDC: save the address that `stampy.datasets.gdc_query()` makes as luad.tsv, "
        "get the slides by `gdc-client download` into the same folder. Which label the paper used is not known; "
        "the table has the stage."
    ),
}

LABELS = {
    "dlpfc": (
        "github.com/JinmiaoChenLab/SEDR_analyses, data/DLPFC/{name}/metadata.tsv (column layer_guess_reordered); or "
        "{name}_truth.txt (barcode, layer), or barcode_level_layer_map.tsv of HumanPilot, anywhere below the "
        "folder; or a column layer_guess_reordered or spatialLIBD in obs."
    ),
    "hbc": (
        "github.com/JinmiaoChenLab/SEDR_analyses, data/BRCA1/metadata.tsv (column fine_annot_type), anywhere below the "
        "folder; or that column in obs."
    ),
}

IMAGES = {
    "dlpfc": (
        "https://spatial-dlpfc.s3.us-east-2.amazonaws.com/images/{name}_full_image.tif, anywhere below the folder."
    ),
    "hbc": "10x Genomics, the same page: V1_Breast_Cancer_Block_A_Section_1_image.tif, anywhere below the folder.",
    "her2": "her2st's ST-imgs (its README names the archive): data/ST-imgs/A/A1/*.jpg, and so on.",
    "psc": "The full-resolution H&E image, in the section's folder or named after it.",
    "hhk": "The full-resolution H&E image, in the section's folder or named after it.",
}
