"""How embeddings and predictions are judged: folds, metrics, measures without labels, the verdict."""
