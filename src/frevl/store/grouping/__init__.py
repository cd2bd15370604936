"""Find dependent pairs: copies, near copies, frames of one video, texts with one label."""
