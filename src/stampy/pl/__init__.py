"""Pictures of finished results; nothing here computes or writes any."""

from stampy.pl._domains import domains
from stampy.pl._expression import expression
from stampy.pl._probe import probe
from stampy.pl._spatial import spatial

__all__ = ["domains", "expression", "probe", "spatial"]
