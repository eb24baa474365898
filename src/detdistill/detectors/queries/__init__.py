"""Code shared by all detectors with queries: `QueryDetector`, box frames, matching, and helpers for decoder stages."""
