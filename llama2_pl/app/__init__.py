"""Talk to a checkpoint in the terminal."""
