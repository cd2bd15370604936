"""Which pairs are not independent of each other: copies, near copies, frames of one video, texts with one label."""
