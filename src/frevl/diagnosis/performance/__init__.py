"""Findings about models: modality use, skills, learning curve, ranking, cost."""
