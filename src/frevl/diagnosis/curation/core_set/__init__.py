"""A small part of a test set on which runs keep their order and their distances."""
