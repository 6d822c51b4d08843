"""The paper's experiments as commands: sets of runs, their tables and their figures."""
