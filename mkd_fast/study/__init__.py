"""Studies: a grid of students trained from one teacher, and the report of what they show."""
