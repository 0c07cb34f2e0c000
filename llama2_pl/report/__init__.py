"""Result files in, one HTML page out: the paper's figures and tables drawn from a run. Needs no model."""
