"""Dense detectors of our own, on torchvision's and timm's parts: those that torchvision does not have."""
