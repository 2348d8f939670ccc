"""Many sections or slides in one run: what `embed_sections` and `embed_slides` share."""
