"""Detectors: adapters of torchvision and transformers, and our own dense detectors and AdaMixer."""
