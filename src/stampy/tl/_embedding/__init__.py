"""Implementation of `tl.embed`: arguments, models, streaming a section through an encoder, resuming."""
