"""`frevl classify`: train a run that labels images from class names and examples."""
