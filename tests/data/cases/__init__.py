"""What people bring: each case is made of a few lines, with what is read or the line that is printed."""
