"""What a reader sees of a comparison: page, picture, tables on the terminal."""
