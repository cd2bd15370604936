"""Rows of pairs files, one reader per format: JSON, CSV and TSV, Arrow and Parquet."""
