"""Geometry and assignment on tensors: boxes, suppression, pooling of regions, matching, masks."""
