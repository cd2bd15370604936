"""Narrowing a search by column filters, and explaining why an image was found."""
