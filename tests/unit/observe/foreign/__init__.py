"""What other monitors recorded, read into the layout."""
