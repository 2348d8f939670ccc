"""Methods of the tools, for arrays only: clustering, linear models, neighbours, slide classifiers, attribution."""
