"""Data sets as people bring them: each case is made from a few lines, with what is read or the line that is printed."""
