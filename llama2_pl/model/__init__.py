"""The one backbone, its heads and the parallel plan. Never returns a loss."""
