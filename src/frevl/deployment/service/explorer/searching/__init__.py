"""Narrowing a search by column filters, and explaining why a picture was found."""
