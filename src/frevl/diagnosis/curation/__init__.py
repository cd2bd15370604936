"""What to keep of captions, labels and a test set: filters that judge every line, and what they remove."""
