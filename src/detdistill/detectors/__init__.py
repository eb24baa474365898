"""Detectors: adapters over torchvision and transformers, and our own dense heads."""
