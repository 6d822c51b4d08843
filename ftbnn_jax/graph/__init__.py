"""From a traced network to what can be said of it, and to a graph of few operations."""
