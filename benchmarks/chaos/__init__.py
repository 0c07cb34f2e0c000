"""`make chaos`: kills, flipped bits, cut files and crafted input, counted; docs/faults.md says what each means."""
