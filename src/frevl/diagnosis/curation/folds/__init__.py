"""Cross-validation by group: one model per fold, trained in this process or on the nodes of a cluster."""
