"""Attention of packed spots and the loss over all genes, in PyTorch's operators and in Triton kernels."""
