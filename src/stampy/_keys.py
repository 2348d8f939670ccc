"""Every name that stampy reads from or writes into AnnData, by slot."""

from typing import Final

# obsm, read
SPATIAL: Final = "spatial"  # (n, 2) float, x and y of the spot centres in px of the full-resolution image

# obsm, written
TOKENS: Final = "stamp_tokens"  # (n, max_tokens) int32, a gene is its vocabulary row + 30, 0 pads on the right
EMBEDDING: Final = "X_stamp"  # (n, d) float32; fused = [gene, image], each of L2 norm 1, else the one modality
GENE_SUFFIX: Final = "_gene"  # appended to the key: gene embedding (n, d) float32, L2 norm 1
IMAGE_SUFFIX: Final = "_image"  # appended to the key: image embedding (n, d) float32, L2 norm 1
TILES: Final = "stamp_tiles"  # (n, size, size, 3) uint8 RGB, one tile per spot (obsm, only on request)

RETRIEVE: Final = "stamp_retrieve"  # uns; prefix of the next two
INDEX_SUFFIX: Final = "_index"  # appended to the key: (n, k) int64, rows of the reference, best first, -1 for none
SCORE_SUFFIX: Final = "_score"  # appended to the key: (n, k) float32, cosine, NaN for none

EVALUATE: Final = "stamp_evaluate"  # uns; scores of embeddings without labels, and a verdict
# obs, written
SCORE: Final = "stamp_score"  # float32, cosine with a gene programme, or its z score; NaN for an empty spot
GROUP: Final = "stamp_group"  # int32, number of the spot's neighbourhood group, -1 if it was dropped
CENTER_SUFFIX: Final = "_center"  # appended to the key: bool, the group's most central spot

# layers, written
ATTRIBUTE: Final = "stamp_attribute"  # csr (n, n_vars) float32, attribution of genes, only on request; the table in uns
# downstream tasks
PROBE: Final = "probe"  # obs: predicted label of each spot, one column an embedding; fold of each spot
DOMAINS: Final = "stamp_domain"  # obs: categorical, "0" is the largest domain
EXPRESSION: Final = "stamp_expression"  # obsm: (n, genes) float32, predicted expression
FOLD_SUFFIX: Final = "_fold"  # appended to the key, obs: int32, fold that the spot was held out in, -1 for none
MEASURED_SUFFIX: Final = (
    "_measured"  # appended to the key, obsm: (n, genes) float32, measured expression to compare with
)
# Words for missing labels, in any case. "other", "background" and the like are labels.
NO_LABELS: Final = frozenset(
    {"", "na", "n/a", "#n/a", "nan", "<na>", "null", "none", "unknown", "undetermined", "unassigned", "unlabelled",
     "unlabeled", "unannotated", "not annotated"}
)  # fmt: skip
# whole slides
SLIDE: Final = "slide"  # obs, name of the slide of each tile
PATIENT: Final = "patient"  # obs, read: patient of the slide
TISSUE: Final = "tissue_fraction"  # obs, float32, part of the tile that is tissue, 0 to 1
SLIDE_TILES: Final = "slide_tiles"  # uns["stamp"], parameters of the tile grid
SLIDE_RESULT: Final = "stamp_slide"  # uns, metrics and predictions of tl.slide
ATTENTION_SUFFIX: Final = "_attention"  # appended to the key: obs, float32, relative to the slide's mean attention of 1
# var, written
ORTHOLOG: Final = "human_ortholog"  # symbol of the human gene; with "_id" its Ensembl id, with "_by" the mapping rule

# uns
UNS: Final = "stamp"  # provenance: uns["stamp"][key] for each key written
UNS_SPATIAL: Final = "spatial"  # images and scale factors as Space Ranger's readers write them
SOURCE_IMAGE: Final = "source_image_path"  # uns["spatial"][section]["metadata"]: path of the full-resolution image
TABLE: Final = "table"  # the table of a SpatialData

# vocabulary
N_SPECIAL: Final = 30  # ids 0..29 are special; gene i of the vocabulary has id i + 30
PAD: Final = 0  # padding in obsm["stamp_tokens"]; the encoder itself uses 1 for padding and 0 for the mask
MAX_TOKENS: Final = 1500

# geometry
TILE_UM: Final = 112.0  # edge of a patch; a region is 3 x 3 patches
TILE_PX: Final = 224
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)  # mean of the channels scaled to 0..1, as in timm
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
