"""Diagnosis: are frozen embeddings enough, and is the fusion worth it? Findings with evidence, and a verdict.

Every finding is measured on the user's own data; all appear on one report page.
"""
