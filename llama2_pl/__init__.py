"""The Llama 2 recipe as a PyTorch Lightning system."""
