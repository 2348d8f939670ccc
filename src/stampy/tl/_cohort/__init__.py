"""Shared parts of `embed_sections` and `embed_slides`: runs over many sections or slides."""
