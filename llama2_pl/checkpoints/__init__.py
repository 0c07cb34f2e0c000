"""Weights in and out: Meta, Hugging Face and our own checkpoints, by one key table."""
