"""Looking after a store: finding what is damaged or lost, bringing back what can be, removing what is not wanted.

`extract` and `import` fill a store; nothing here embeds anything.
"""
