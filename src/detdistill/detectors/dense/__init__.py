"""Our implementations of the dense detectors that torchvision does not have."""
