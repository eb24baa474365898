"""AdaMixer (Gao et al., CVPR 2022, arXiv:2203.16507).

A query decoder that samples and mixes features adaptively, without an encoder.
"""
