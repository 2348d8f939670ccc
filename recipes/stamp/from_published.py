"""Convert the published gene encoder to a start model for stage 2: `python from_published.py CHECKPOINT OUT`.

CHECKPOINT is a stage 1 file of the paper's code. It does not contain the head that projects features, which starts from
random weights, as in the paper. The vocabulary is the published one, with its rounded divisors.
"""

from __future__ import annotations

import argparse

from stampy import datasets, models, pp


def main() -> None:
    """Read the checkpoint and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("out")
    given = parser.parse_args()
    encoder = models.load_published_gene_encoder(given.checkpoint, device="cpu")
    genes = pp.Vocabulary.load(datasets.published_vocabulary()).frame
    model = models.Stamp(models.StampConfig(gene=encoder.config, embedding=512), genes)
    model.gene.load_state_dict(encoder.state_dict())
    models.save(model, given.out)
    print(f"Written: {given.out}")


if __name__ == "__main__":
    main()
