"""Adapters of torchvision's detectors, composed of the public parts of each model."""
