"""Maintenance of a store: finding damage and losses, recovering what is possible, removing items.

`extract` and `import` fill a store; nothing here embeds anything.
"""
