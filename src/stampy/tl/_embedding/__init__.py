"""What stands behind `tl.embed`: arguments, the model, a section streamed through a tower, and resuming."""
