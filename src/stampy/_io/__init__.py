"""Readers of the formats in which users have sections, behind `stampy.read`, and the writer of the command line."""
