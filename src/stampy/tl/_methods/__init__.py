"""Methods of the tools, on arrays alone: clustering, linear models, neighbours, slide classifiers, attribution."""
