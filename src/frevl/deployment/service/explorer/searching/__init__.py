"""What narrows a search and what explains a hit: filters on columns, and why a picture was found."""
