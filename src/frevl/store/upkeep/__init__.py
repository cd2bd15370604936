"""Maintenance of a store: finding what is damaged or lost, recovering what can be recovered, removing items.

`extract` and `import` fill a store; nothing here embeds anything.
"""
