"""Backbones of timm: examined, built for images of any size, and loaded with weights."""
