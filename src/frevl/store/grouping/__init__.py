"""Find dependent pairs: copies, near copies, frames of one video, texts that always have one label."""
