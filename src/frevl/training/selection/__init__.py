"""`--model auto` for classification: candidates, folds, the one-standard-error rule."""
