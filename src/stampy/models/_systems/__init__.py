"""Encoders and predictors of other groups: cards, loaders, downloads."""
