"""Is a frozen embedding enough, and is the fusion worth it? Findings with evidence, and a verdict.

Every finding is measured on the user's own data, and all are on one report page.
"""
