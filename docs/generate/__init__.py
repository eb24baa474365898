"""Writes the generated pages of the documentation (`make docs`), and gives the site the files outside of docs/."""
