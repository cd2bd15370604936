"""The classifiers of `frevl.estimators`, for arrays. Loads no store and reads no images."""
