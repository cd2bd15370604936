"""`frevl bench`: time and energy per pair, by stage, compared with running the encoders end to end."""
