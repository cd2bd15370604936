"""Arrays in, model out: what `frevl.estimators` offers. Loads no store and reads no pictures."""
