"""Knowledge distillation for object detectors."""
