"""The recipe as resumable stages: collect preferences, train, evaluate, report."""
