"""Shared parts of plots: sections, colours, layout, and records of tools."""
