"""Evaluation of embeddings and predictions: folds, metrics, label-free measures, verdict."""
