"""Reports of finished runs: one HTML file that shows images, numbers and axes without a network."""
