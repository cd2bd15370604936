"""What the page needs to ask runs and to show their reports."""
