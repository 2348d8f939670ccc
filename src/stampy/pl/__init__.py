"""Pictures of finished results; nothing here computes or writes any."""

from stampy.pl._spatial import spatial

__all__ = ["spatial"]
