"""Distributed training: processes that train one network together, how they start, and how they communicate."""
