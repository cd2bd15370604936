"""`frevl classify`: names and examples of classes -> a run that labels images."""
