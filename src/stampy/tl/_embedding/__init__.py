"""Implementation of `tl.embed`: arguments, models, streaming a section through a tower, resuming."""
