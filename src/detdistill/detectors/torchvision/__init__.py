"""Adapters over torchvision's detectors, by composition of their public parts."""
