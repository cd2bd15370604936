"""`frevl bench`: time and energy of a pair, by stage, against running the encoders end to end."""
