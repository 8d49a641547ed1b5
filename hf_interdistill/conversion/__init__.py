"""Reward models of other trainers, as plain sequence classifiers with one output: `interdistill convert`."""
