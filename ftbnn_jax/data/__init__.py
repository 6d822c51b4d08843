"""From stored images to batches."""
