"""Functions (model, rows) to numbers; results are plain dictionaries that go into JSON."""
