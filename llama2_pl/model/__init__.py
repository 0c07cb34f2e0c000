"""The one backbone, its heads, the KV cache and the parallel plan. Never returns a loss."""
