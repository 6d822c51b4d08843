"""From stored images to batches."""

from ftbnn_jax import extras

extras.require("cv2", "etils", "google", "google_crc32c", "sklearn")
