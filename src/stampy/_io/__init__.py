"""Readers of all formats for `stampy.read`, one file per format, and the writer of the command line."""
