"""Parts that several methods share: paired levels, shared classes, dense predictions, regions of interest, queries."""
